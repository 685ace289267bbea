"""A dry run of all that the method asks of a model, before anything is spent on it.

A few tokens go through the model as ids and as embeddings, alone and in a padded batch, whole and step by
step behind cached ones, with a vector among them that is no token's. The plain forward is right by
definition; what differs from it, or ends in an error, is refused with its cure.
"""

from collections.abc import Callable
from typing import Any

import torch

from gag.errors import GagError, MismatchError
from gag.models.backbone import Backbone
from gag.models.language_model import Request, generate, pad_left
from gag.models.prompts import Prompts

CLOSE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25}  # of the largest logit
PROBE = "What is it, and how is it called?"
_ERRORS = (  # what a model's code may raise where it does not do what is asked of it
    ValueError, RuntimeError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError,
)  # fmt: skip


@torch.no_grad()
def check_serves(model: Backbone) -> None:
    """Refuse a model that cannot serve as a base or an expert.

    Raises:
        MismatchError: with what it cannot do, and what to name or set instead.
    """
    check_tokens(model.name, model.prompts, len(model.table))
    _ = model.decoder_layers
    ids = model.prompts.plain(PROBE)
    if model.positions is not None and model.positions < len(ids) + 3:
        raise MismatchError(
            f"{model.name} has positions for {model.positions} tokens, and a short question takes "
            f"{len(ids)}; see max_position_embeddings in its config.json, or name another model"
        )
    stock = tried(
        model, "a forward pass", lambda: model.model(torch.tensor([ids], device=model.device)).logits[0]
    )
    if not torch.isfinite(stock).all():
        raise MismatchError(
            f"{model.name} computes no numbers in {model.model.dtype}; set another dtype for it"
        )

    def logits(rows: list[torch.Tensor]) -> list[torch.Tensor]:
        states = model.states(pad_left(rows))
        return [model.logits(row[-len(embeds) :]) for row, embeds in zip(states, rows, strict=True)]

    row = model.embed(ids)
    between = row[-2:].mean(0, keepdim=True)  # a vector of no token
    odd = torch.cat([row[:-2], between, row[-2:]])  # [T + 1, D]
    alone = tried(model, "a vector among its embeddings", lambda: logits([odd]))
    given = tried(model, "embeddings in place of ids", lambda: logits([row]))[0]
    _compare(model, "its logits from embeddings", given, stock)
    _compare(model, "what stands before a token", alone[0][: len(row) - 2], given[: len(row) - 2])
    end = row[-3:]
    alone += tried(model, "a short prompt", lambda: logits([end]))
    batch = tried(model, "a padded batch", lambda: logits([odd, end]))
    for ours, true in zip(batch, alone, strict=True):
        _compare(model, "a row in a padded batch", ours, true)
    steps = tried(
        model, "a step behind cached tokens", lambda: generate(model, [Request(odd, 2), Request(row, 2)])
    )
    for number, (token, chance) in enumerate(zip(steps[0].ids, steps[0].log_probabilities, strict=True)):
        before = torch.cat([odd, model.embed(steps[0].ids[:number])]) if number else odd
        whole = logits([before])[0][-1].float().log_softmax(-1)
        _compare(model, "a step behind cached tokens", torch.tensor(chance), whole[token].cpu())


def check_tokens(name: str, prompts: Prompts, size: int) -> None:
    """Refuse a tokenizer with tokens that a table of `size` embeddings does not have."""
    lacking = prompts.lacking(size)
    if lacking:
        raise MismatchError(
            f"the tokenizer of {name} has {len(lacking)} tokens more than its {size} "
            f"embeddings (first: {lacking[0]!r}); resize the model's embeddings, or name the tokenizer that "
            "it was trained with"
        )


def tried(model: Backbone, what: str, work: Callable[[], Any]) -> Any:
    """Do some work on a model; what its code raises is a refusal of the model."""
    try:
        return work()
    except GagError:
        raise
    except torch.OutOfMemoryError as error:
        raise MismatchError(
            f"{model.name} fills the device's memory; set another device, or name a smaller model"
        ) from error
    except _ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise MismatchError(
            f"{model.name} cannot serve: {what} ends in {type(error).__name__} ({reason}); name a model of "
            f"another family than {model.model.config.model_type}"
        ) from error


def _compare(model: Backbone, what: str, ours: torch.Tensor, true: torch.Tensor) -> None:
    scale = max(1.0, float(true.float().abs().max()))
    apart = float((ours.float() - true.float()).abs().max()) / scale
    halves = getattr(model.model, "is_quantized", False)  # whose kernels compute in half precision
    if not apart <= CLOSE.get(torch.float16 if halves else model.model.dtype, 0.25):
        raise MismatchError(
            f"{model.name} cannot serve: {what} is {apart:.1%} off the plain forward; name a model of "
            f"another family than {model.model.config.model_type}"
        )

"""The seam: what the method asks of a model, whichever engine runs it.

`Backbone` is the implementation by transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from gag.errors import DataError, SettingsError
from gag.models.prompts import Prompts
from gag.models.sampling import Sampling
from gag.project.domain import ModelFacts
from gag.project.progress import say

Finish = Literal["stop", "length"]  # an end token came; the budget was used up


@dataclass(frozen=True)
class Inputs:
    """A left-padded batch of embeddings."""

    embeds: torch.Tensor  # [B, T, D]
    mask: torch.Tensor  # [B, T], 1 where a token or a vector stands

    @property
    def positions(self) -> torch.Tensor:
        """Positions that do not count the padding [B, T]."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Request:
    """One prompt to be continued."""

    embeds: torch.Tensor  # [T, D]
    max_new_tokens: int
    sampling: Sampling | None = None  # None: greedy


@dataclass(frozen=True)
class Token:
    """One step of one request."""

    request: int  # its place among those that were started
    id: int
    log_probability: float  # under the model, whatever sampling chose it
    finish: Finish | None  # why this token is the last; an end token is no part of the text


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    ids: list[int]  # without the end token
    finish: Finish
    log_probabilities: list[float]  # of `ids`


class Generator(Protocol):
    """Continues prompts, all started ones by one token a step."""

    def start(self, requests: Sequence[Request]) -> None:
        """Take prompts; those of before are dropped."""
        ...

    def step(self) -> list[Token]:
        """Continue every unfinished request by one token; nothing once all are finished."""
        ...


class LanguageModel(Protocol):
    """A frozen causal language model with its tokenizer's prompts."""

    @property
    def facts(self) -> ModelFacts:
        """Name, fingerprint and width D: a domain records them."""
        ...

    @property
    def prompts(self) -> Prompts:
        """The method's prompts in its tokens."""
        ...

    @property
    def embeddings(self) -> torch.Tensor:
        """What the decoder takes for each token [V, D]."""
        ...

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        ...

    def states(self, inputs: Inputs) -> torch.Tensor:
        """Run a batch -> the last hidden states, after the final norm [B, T, D]."""
        ...

    def layer_states(self, inputs: Inputs, layers: tuple[int, ...]) -> torch.Tensor:
        """Run a batch as deep as is read -> the states of layers, indexed as hidden_states [B, T, L, D]."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn last hidden states [..., D] into logits [..., V]."""
        ...

    def generator(self) -> Generator:
        """Return what continues prompts."""
        ...


def check_room(model: LanguageModel, tokens: int, what: str) -> None:
    """Refuse what is longer than a model's `positions`; a model that has none sets no limit.

    Raises:
        DataError: with both numbers.
    """
    positions = getattr(model, "positions", None)
    if positions is not None and tokens > positions:
        raise DataError(
            f"{what} takes {tokens} tokens with its answer, and {model.facts.model} has positions for "
            f"{positions}; shorten it, or lower the budget of new tokens"
        )


def generate(model: LanguageModel, requests: Sequence[Request]) -> list[Generation]:
    """Continue prompts to their ends, together, in the order given; what does not fit in memory in halves.

    Raises:
        DataError: a prompt and its budget are longer than the model's positions.
        SettingsError: one prompt alone does not fit in memory.
    """
    for request in requests:
        check_room(model, len(request.embeds) + request.max_new_tokens, "a prompt")
    try:
        return _generate(model, requests)
    except torch.OutOfMemoryError:
        pass  # go on outside of this block, so that the failed tensors can be freed
    if len(requests) == 1:
        raise SettingsError(
            "one prompt does not fit in memory; lower its budget (decoding.max_new_tokens, of the expert "
            "readout.max_new_tokens), or use a smaller model"
        )
    free_memory()
    half = len(requests) // 2
    say(
        f"  out of memory with {len(requests)} prompts at once: going on with {half}; lower "
        "decoding.batch_size, of the expert readout.batch_tokens"
    )
    return [*generate(model, requests[:half]), *generate(model, requests[half:])]


def free_memory() -> None:
    """Give an accelerator's cached memory back."""
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()


def _generate(model: LanguageModel, requests: Sequence[Request]) -> list[Generation]:
    generator, ids, chances = model.generator(), [[] for _ in requests], [[] for _ in requests]
    finishes: list[Finish] = ["length"] * len(requests)
    generator.start(requests)
    while tokens := generator.step():
        for token in tokens:
            finishes[token.request] = token.finish or "length"
            if token.finish != "stop":
                ids[token.request].append(token.id)
                chances[token.request].append(token.log_probability)
    return [Generation(*row) for row in zip(ids, finishes, chances, strict=True)]


def pad_left(rows: Sequence[torch.Tensor]) -> Inputs:
    """Batch rows of unequal length; padding is zero vectors under a zero mask: B x [t, D] -> [B, T, D]."""
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        embeds[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return Inputs(embeds, mask)

"""Read an expert: it writes background knowledge, one forward gives the states, pooling makes slots of them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from gag.errors import SettingsError
from gag.models.backbone import Backbone, Inputs, pad_left
from gag.models.sampling import seeded_sampler
from gag.project.progress import say
from gag.project.settings import ReadoutSettings
from gag.readout.vocabulary import foretold


@dataclass(frozen=True)
class Readout:
    """What an expert knows of B questions."""

    slots: torch.Tensor  # [B, S, L, De], or Db wide in the base's vocabulary
    texts: list[str]
    empty: list[bool]  # nothing was written: the slot is the prompt's last token


def check_layers(backbone: Backbone, layers: tuple[int, ...]) -> None:
    """Refuse layers that the backbone does not have."""
    for layer in layers:
        if not -backbone.layers - 1 <= layer <= backbone.layers:
            raise SettingsError(
                f"readout.layers has {layer}, but {backbone.name} has {backbone.layers} layers; "
                f"choose from {-backbone.layers - 1} to {backbone.layers}"
            )


def read(
    expert: Backbone,
    questions: list[str],
    system: str,
    settings: ReadoutSettings,
    table: torch.Tensor | None = None,
) -> Readout:
    """Read questions in batches of like length within the token budget; the order of the questions is kept.

    `table` holds the base's token embeddings [V, Db], where `readout.space` is vocabulary.
    """
    prompts = [expert.prompts.ask_expert(question, system) for question in questions]
    waiting = token_batches(
        [len(prompt) + settings.max_new_tokens for prompt in prompts], settings.batch_tokens
    )
    done: dict[int, tuple[torch.Tensor, list[int]]] = {}
    while waiting:
        batch = waiting.pop()
        rows = _read_batch(
            expert, [questions[i] for i in batch], [prompts[i] for i in batch], settings, table
        )
        if rows is None:
            waiting += _halves(batch)
        else:
            done |= dict(zip(batch, rows, strict=True))
    written = [done[i][1] for i in range(len(questions))]
    slots = torch.stack([done[i][0] for i in range(len(questions))])
    return Readout(slots, [expert.prompts.decode(ids) for ids in written], [not ids for ids in written])


def token_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Group rows of like length so that rows times the longest stays within the budget; a longer row goes alone."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _read_batch(
    expert: Backbone,
    questions: list[str],
    prompts: list[list[int]],
    settings: ReadoutSettings,
    table: torch.Tensor | None,
) -> list[tuple[torch.Tensor, list[int]]] | None:
    """Return each question's slots [S, L, De or Db] and written ids, or None if the batch does not fit in memory."""
    try:
        written = write(expert, questions, prompts, settings)
        states = read_states(expert, prompts, written, settings.layers)
        if table is not None:
            states = [foretold(expert, rows[:, 0], table).to(rows.dtype)[:, None] for rows in states]
        return [(pool(rows, settings), ids) for rows, ids in zip(states, written, strict=True)]
    except torch.OutOfMemoryError:
        return None  # the caller goes on outside of this block, so that the failed tensors can be freed


def _halves(batch: list[int]) -> list[list[int]]:
    if len(batch) == 1:
        raise SettingsError(
            "one question does not fit in memory; lower readout.max_new_tokens, or use a smaller expert"
        )
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    half = len(batch) // 2
    say(
        f"  out of memory with {len(batch)} questions at once: going on with {half}; lower readout.batch_tokens"
    )
    return [batch[half:], batch[:half]]


def write(
    expert: Backbone, questions: list[str], prompts: list[list[int]], settings: ReadoutSettings
) -> list[list[int]]:
    """Decode background knowledge; a budget of 0 writes nothing."""
    if settings.max_new_tokens == 0:
        return [[] for _ in prompts]
    sampler = seeded_sampler(questions, settings, expert.device)
    return expert.generate(pad_left([expert.embed(ids) for ids in prompts]), settings.max_new_tokens, sampler)


@torch.no_grad()
def read_states(
    expert: Backbone, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
) -> list[torch.Tensor]:
    """Return, per question, the states of the written tokens (or of the prompt's last one): B x [T, L, De].

    The state belongs to the token itself. Layers index hidden_states: 0 is the embedding, -1 is after the final norm.
    Only the read layers' states are kept, and no layer above the highest one is run.
    """
    inputs = pad_left([expert.embed(prompt + ids) for prompt, ids in zip(prompts, written, strict=True)])
    wanted = [layer % (expert.layers + 1) for layer in layers]
    seen = {0: inputs.embeds} | (_run(expert, inputs, wanted) if max(wanted) > 0 else {})
    states = torch.stack([seen[layer] for layer in wanted], dim=2)  # [B, T, L, De]
    return [row[-max(len(ids), 1) :] for row, ids in zip(states, written, strict=True)]


class _HighestLayerReached(Exception):  # noqa: N818 - a signal
    """Leave a forward whose upper layers nobody reads."""


def _run(expert: Backbone, inputs: Inputs, layers: list[int]) -> dict[int, torch.Tensor]:
    """Run the decoder up to the highest of the layers (k: after layer k) -> each one's states [B, T, De]."""
    seen: dict[int, torch.Tensor] = {}

    def hook_of(layer: int) -> Callable[..., None]:
        def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise _HighestLayerReached

        return keep

    between = {layer for layer in layers if 0 < layer < expert.layers}
    handles = [expert.decoder_layers[layer - 1].register_forward_hook(hook_of(layer)) for layer in between]
    try:
        seen[expert.layers] = expert.model.get_decoder()(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state
    except _HighestLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def pool(states: torch.Tensor, settings: ReadoutSettings) -> torch.Tensor:
    """Pool one question's states to slots, in float32 and back: [T, L, De] -> [S, L, De].

    The T rows are cut into S contiguous segments at round(i T / S); an empty segment takes its first row.
    """
    if settings.pooling == "last":
        return states[-1:].clone()  # a view would keep the whole batch's states
    rows, count = states.float(), len(states)
    cuts = [round(i * count / settings.slots) for i in range(settings.slots + 1)]
    segments = [rows[a:b] if a < b else rows[min(count - 1, a)][None] for a, b in pairwise(cuts)]
    return torch.stack([_weighted(segment, settings) for segment in segments]).to(states.dtype)


def _weighted(segment: torch.Tensor, settings: ReadoutSettings) -> torch.Tensor:
    """Average a segment: [T, L, De] -> [L, De]; a single segment is the plain mean, as published."""
    if settings.pooling == "mean" or settings.slots == 1:
        return segment.mean(0)
    norms = segment.norm(dim=-1)  # [T, L]
    if settings.pooling == "relative":
        norms = norms / norms.mean(0).clamp_min(1e-12)
    weights = (norms / settings.pooling_temperature).softmax(0)
    return (weights[..., None] * segment).sum(0)

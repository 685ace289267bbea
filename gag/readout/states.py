"""Read an expert: it generates background, one forward gives the states, pooling makes slots."""

from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten

import torch

from gag.errors import SettingsError
from gag.models.batching import length_batches
from gag.models.language_model import LanguageModel, Request, check_room, free_memory, generate, pad_left
from gag.models.sampling import seeded
from gag.project.hyperparameters import ReadoutSettings
from gag.project.progress import say
from gag.readout.vocabulary import predicted_embeddings


@dataclass(frozen=True)
class Readout:
    """What an expert knows of B questions."""

    slots: torch.Tensor  # [B, S, L, De], or Db wide in the base's vocabulary
    texts: list[str]
    empty: list[bool]  # nothing was written: the slot is the prompt's last token


def check_layers(name: str, count: int, layers: tuple[int, ...]) -> None:
    """Refuse layers that an expert of `count` decoder layers does not have."""
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise SettingsError(
                f"readout.layers has {layer}, but {name} has {count} layers; choose from {-count - 1} "
                f"to {count}"
            )


def read(
    expert: LanguageModel,
    questions: list[str],
    system: str,
    settings: ReadoutSettings,
    table: torch.Tensor | None = None,
) -> Readout:
    """Read questions in batches of like length within the token budget; the order of the questions is kept.

    `table` holds the base's token embeddings [V, Db], where `readout.space` is vocabulary.

    Raises:
        DataError: a question and the budget are longer than the expert's positions.
    """
    prompts = [expert.prompts.ask_expert(question, system) for question in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        check_room(expert, len(prompt) + settings.max_new_tokens, f"the question {shorten(question, 60)!r}")
    waiting = length_batches(
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


def _read_batch(
    expert: LanguageModel,
    questions: list[str],
    prompts: list[list[int]],
    settings: ReadoutSettings,
    table: torch.Tensor | None,
) -> list[tuple[torch.Tensor, list[int]]] | None:
    """Return each question's slots [S, L, De or Db] and ids, or None if they do not fit in memory."""
    try:
        written = generate_background(expert, questions, prompts, settings)
        states = read_states(expert, prompts, written, settings.layers)
        if table is not None:
            states = [
                predicted_embeddings(expert, rows[:, 0], table).to(rows.dtype)[:, None] for rows in states
            ]
        return [(pool(rows, settings), ids) for rows, ids in zip(states, written, strict=True)]
    except torch.OutOfMemoryError:
        return None  # the caller goes on outside of this block, so that the failed tensors can be freed


def _halves(batch: list[int]) -> list[list[int]]:
    if len(batch) == 1:
        raise SettingsError(
            "one question does not fit in memory; lower readout.max_new_tokens, or use a smaller expert"
        )
    free_memory()
    half = len(batch) // 2
    say(
        f"  out of memory with {len(batch)} questions at once: going on with {half}; lower "
        "readout.batch_tokens"
    )
    return [batch[half:], batch[:half]]


def generate_background(
    expert: LanguageModel, questions: list[str], prompts: list[list[int]], settings: ReadoutSettings
) -> list[list[int]]:
    """Generate background knowledge -> ids of each question; a budget of 0 writes nothing."""
    budget = settings.max_new_tokens
    requests = [
        Request(
            expert.embed(prompt),
            budget,
            seeded(question, settings.seed, budget, settings.temperature, settings.top_p, settings.top_k),
        )
        for question, prompt in zip(questions, prompts, strict=True)
    ]
    return [generation.ids for generation in generate(expert, requests)]


@torch.no_grad()
def read_states(
    expert: LanguageModel, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
) -> list[torch.Tensor]:
    """Return, per question, the states of the written tokens (or of the prompt's last one): B x [T, L, De].

    The state belongs to the token itself. Layers index hidden_states: 0 is the embedding, -1 is after the
    final norm. Only the read layers' states are kept, and no layer above the highest one is run.
    """
    inputs = pad_left([expert.embed(prompt + ids) for prompt, ids in zip(prompts, written, strict=True)])
    states = expert.layer_states(inputs, layers)  # [B, T, L, De]
    return [row[-max(len(ids), 1) :] for row, ids in zip(states, written, strict=True)]


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

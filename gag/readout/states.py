"""Read an expert: it writes background, and the whole text or its salient words make slots."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten

import torch

from gag.errors import SettingsError
from gag.models.batching import length_batches
from gag.models.experts import ExpertSource
from gag.models.language_model import (
    LanguageModel,
    Likely,
    Request,
    check_room,
    free_memory,
    generate,
    pad_left,
)
from gag.models.sampling import seeded
from gag.project.hyperparameters import ReadoutSettings
from gag.project.progress import say
from gag.readout.salient import Word, fitting, rank_words
from gag.readout.vocabulary import LIKELIEST, BaseVocabulary, likely_embeddings, predicted_embeddings


@dataclass(frozen=True)
class Readout:
    """What an expert knows of B questions."""

    slots: torch.Tensor  # [B, S, L, De], or Db wide in the base's vocabulary
    texts: list[str]
    empty: list[bool]  # nothing was written: the slot is the prompt's last token, or unused
    words: list[tuple[str, ...]]  # the salient words in the slots
    ids: list[list[int]]  # what was written, as the expert's tokens


def check_layers(name: str, count: int, layers: tuple[int, ...]) -> None:
    """Refuse layers that an expert of `count` decoder layers does not have."""
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise SettingsError(
                f"readout.layers has {layer}, but {name} has {count} layers; choose from {-count - 1} "
                f"to {count}"
            )


def read(
    experts: ExpertSource,
    name: str | None,
    questions: list[str],
    system: str,
    settings: ReadoutSettings,
    vocabulary: BaseVocabulary | None = None,
    written: list[list[int]] | None = None,
    common: Mapping[str, float] | None = None,
    likely: list[Likely] | None = None,
) -> Readout:
    """Read questions in batches of like length within the token budget; the order of the questions is kept.

    Args:
        experts: hold the expert, and the backbone that it was tuned from.
        name: the expert's; None: the backbone itself.
        questions: what it is asked.
        system: its system prompt.
        settings: how it is read.
        vocabulary: the base's, where `readout.space` is vocabulary.
        written: what the expert wrote to each before, if it is known.
        common: the share of the expert's answers that hold a word, of those that many share.
        likely: the tokens that it found likeliest behind each written one [T, K], if they are known.

    Raises:
        DataError: a question and the budget are longer than the expert's positions.
    """
    with experts.using(name) as expert:
        prompts = [expert.prompts.ask_expert(question, system) for question in questions]
        budgets = [len(ids) for ids in written] if written else [settings.max_new_tokens] * len(prompts)
        lengths = [len(prompt) + budget for prompt, budget in zip(prompts, budgets, strict=True)]
        for question, length in zip(questions, lengths, strict=True):
            check_room(expert, length, f"the question {shorten(question, 60)!r}")
        decode = expert.prompts.decode
    waiting = length_batches(lengths, settings.batch_tokens)
    done: dict[int, _Row] = {}
    while waiting:
        batch = waiting.pop()
        asked = [questions[i] for i in batch], [prompts[i] for i in batch]
        known = [written[i] for i in batch] if written else None
        foretold = [likely[i] for i in batch] if likely else None
        rows = _read_batch(experts, name, *asked, settings, vocabulary, known, common or {}, foretold)
        if rows is None:
            waiting += _halves(batch)
        else:
            done |= dict(zip(batch, rows, strict=True))
    rows = [done[i] for i in range(len(questions))]
    return Readout(
        slots=torch.stack([row.slots for row in rows]),
        texts=[decode(row.ids) for row in rows],
        empty=[not row.ids for row in rows],
        words=[row.words for row in rows],
        ids=[row.ids for row in rows],
    )


@dataclass(frozen=True)
class _Row:
    """What one question gave."""

    slots: torch.Tensor  # [S, L, De or Db]
    ids: list[int]
    words: tuple[str, ...]


def _read_batch(
    experts: ExpertSource,
    name: str | None,
    questions: list[str],
    prompts: list[list[int]],
    settings: ReadoutSettings,
    vocabulary: BaseVocabulary | None,
    known: list[list[int]] | None,
    common: Mapping[str, float],
    likely: list[Likely] | None,
) -> list[_Row] | None:
    """Write and read each question, or return None if they do not fit in memory."""
    try:
        with experts.using(name) as expert:
            written = known
            if written is None:
                written = generate_background(expert, questions, prompts, settings)
            rows = _token_rows(expert, prompts, written, settings, vocabulary, likely)
        if settings.select == "segments":
            return [_Row(pool(one, settings), ids, ()) for one, ids in zip(rows, written, strict=True)]
        with experts.using(None) as backbone:
            ranked = rank_words(backbone, questions, prompts, written, settings.batch_tokens, common)
        if settings.space == "vocabulary" and vocabulary:
            own = [vocabulary.rows(backbone.prompts, *one) for one in zip(written, ranked, strict=True)]
            rows, ranked = [one.rows for one in own], [one.words for one in own]
        return [_salient(*one, settings.slots) for one in zip(rows, written, ranked, strict=True)]
    except torch.OutOfMemoryError:
        return None  # the caller goes on outside of this block, so that the failed tensors can be freed


def _token_rows(
    expert: LanguageModel,
    prompts: list[list[int]],
    written: list[list[int]],
    settings: ReadoutSettings,
    vocabulary: BaseVocabulary | None,
    likely: list[Likely] | None,
) -> list[torch.Tensor]:
    """Return each written token's states, or the base's embeddings of what they predict: [T, L, De or Db]."""
    if settings.space == "vocabulary" and settings.select == "salient":
        return []  # the words themselves are embedded, once they are chosen
    if likely and vocabulary:
        return [likely_embeddings(one, vocabulary.table)[:, None] for one in likely]
    states = read_states(expert, prompts, written, settings.layers)
    if settings.space == "vocabulary" and vocabulary:
        return [
            predicted_embeddings(expert, one[:, 0], vocabulary.table).to(one.dtype)[:, None] for one in states
        ]
    return states


def _salient(rows: torch.Tensor, ids: list[int], words: list[Word], slots: int) -> _Row:
    """Fill S slots with the rows of the first words that fit, in the order of the text: [S, L, D].

    The others stay zero.
    """
    kept = fitting(words, slots)
    chosen = [place for word in kept for place in word.places][:slots]
    filled = rows.new_zeros(slots, *rows.shape[1:])
    filled[: len(chosen)] = rows[chosen]
    return _Row(filled, ids, tuple(word.text.strip() for word in kept))


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


def foretelling(settings: ReadoutSettings) -> int:
    """Return how many likeliest tokens a readout wants of each step while the expert writes; 0: none.

    The step behind a token says what its state foretells, so nothing needs to be read again; the last token
    takes a step more.
    """
    return LIKELIEST if settings.space == "vocabulary" and settings.select == "segments" else 0


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

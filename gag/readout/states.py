"""Read an expert: it writes background, and the whole text or its salient words make slots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten

import torch

from gag.errors import SettingsError
from gag.models.batching import in_length_batches
from gag.models.experts import ExpertSource
from gag.models.language_model import LanguageModel, Likely, Request, check_room, generate, stacked
from gag.models.sampling import seeded
from gag.project.hyperparameters import ReadoutSettings
from gag.readout.salient import Word, fitting, rank_words
from gag.readout.vocabulary import LIKELIEST, BaseVocabulary, likely_embeddings


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
    """Have an expert write on questions, and read what it wrote; the order of the questions is kept.

    Within the token budget: texts join and leave the batch while it is written, and are read by like length.

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
        if written is None:
            written, likely = write(expert, questions, prompts, settings)
        decode = expert.prompts.decode
    asked = _Asked(questions, prompts, written, likely)
    ranked: list[list[Word]] = [[] for _ in questions]
    if settings.select == "salient":
        with experts.using(None) as backbone:
            ranked = rank_words(backbone, questions, prompts, written, settings.batch_tokens, common or {})
    with experts.using(name) as expert:
        rows = in_length_batches(
            list(range(len(questions))),
            lambda batch: _read_batch(expert, asked, batch, ranked, settings, vocabulary),
            settings.batch_tokens,
            length=lengths.__getitem__,
        )
    return Readout(
        slots=torch.stack([slots for slots, _ in rows]),
        texts=[decode(ids) for ids in written],
        empty=[not ids for ids in written],
        words=[words for _, words in rows],
        ids=written,
    )


@dataclass(frozen=True)
class _Asked:
    """Questions, and what the expert wrote."""

    questions: list[str]
    prompts: list[list[int]]
    written: list[list[int]]
    likely: list[Likely] | None  # behind each token, where that is known


def _read_batch(
    expert: LanguageModel,
    asked: _Asked,
    batch: list[int],
    ranked: list[list[Word]],
    settings: ReadoutSettings,
    vocabulary: BaseVocabulary | None,
) -> list[tuple[torch.Tensor, tuple[str, ...]]]:
    """Read some texts -> each one's slots [S, L, De or Db] and words."""
    written, words = [asked.written[i] for i in batch], [ranked[i] for i in batch]
    if settings.select == "salient" and settings.space == "vocabulary" and vocabulary:
        own = [vocabulary.rows(expert.prompts, *one) for one in zip(written, words, strict=True)]
        rows, words = [one.rows for one in own], [one.words for one in own]
    else:
        rows = _token_rows(expert, asked, batch, settings, vocabulary)
    if settings.select == "segments":
        return [(pool(row, settings), ()) for row in rows]
    return [_salient(*one, settings.slots) for one in zip(rows, words, strict=True)]


def _token_rows(
    expert: LanguageModel,
    asked: _Asked,
    batch: list[int],
    settings: ReadoutSettings,
    vocabulary: BaseVocabulary | None,
) -> list[torch.Tensor]:
    """Return each written token's states, or the base's embeddings of what they predict: [T, L, De or Db]."""
    prompts, written = [asked.prompts[i] for i in batch], [asked.written[i] for i in batch]
    if settings.space == "hidden" or not vocabulary:
        return expert.read_states(prompts, written, settings.layers)
    if asked.likely:
        likely = [asked.likely[i] for i in batch]
    else:
        likely = expert.foretold(prompts, written, LIKELIEST)
    return [likely_embeddings(one, vocabulary.table)[:, None] for one in likely]


def _salient(rows: torch.Tensor, words: list[Word], slots: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Fill S slots with the rows of the first words that fit, in the order of the text: [S, L, D].

    The others stay zero.
    """
    kept = fitting(words, slots)
    chosen = [place for word in kept for place in word.places][:slots]
    filled = rows.new_zeros(slots, *rows.shape[1:])
    filled[: len(chosen)] = rows[chosen]
    return filled, tuple(word.text.strip() for word in kept)


def foretelling(settings: ReadoutSettings) -> int:
    """Return how many likeliest tokens a readout wants of each step while the expert writes; 0: none.

    The step behind a token says what its state foretells, so nothing needs to be read again; the last token
    takes a step more.
    """
    return LIKELIEST if settings.space == "vocabulary" and settings.select == "segments" else 0


def behind(steps: Sequence[Likely], written: list[int]) -> Likely:
    """Join what the steps of a text found likeliest -> behind each of its tokens [T, K].

    Behind the prompt, where nothing was written.
    """
    return stacked(steps[1:] if written else steps)


def write(
    expert: LanguageModel, questions: list[str], prompts: list[list[int]], settings: ReadoutSettings
) -> tuple[list[list[int]], list[Likely] | None]:
    """Write background knowledge -> ids of each question, and where `foretelling` what was likeliest."""
    top, budget = foretelling(settings), settings.max_new_tokens
    steps = budget + 1 if top else budget
    requests = [
        Request(
            prompt,
            steps,
            seeded(question, settings.seed, steps, settings.temperature, settings.top_p, settings.top_k),
            top,
        )
        for question, prompt in zip(questions, prompts, strict=True)
    ]
    said = generate(expert, requests, settings.batch_tokens)
    written = [one.ids[:budget] for one in said]
    likely = [behind(one.steps, ids) for one, ids in zip(said, written, strict=True)] if top else None
    return written, likely


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

"""The salient readout: of what an expert wrote, the words that are news and that answer the question.

A word is news where the backbone, without the expert's adapter, would not have written it; the less so, the
more of the expert's answers hold it. Where the text has several sentences, those count behind which the
backbone is likely to ask the question. Words that stand in the question come last.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import regex
import torch

from gag.models.language_model import LanguageModel
from gag.models.prompts import Prompts
from gag.project.words import RARE, UNSPACED, tokens

NEAR = 0.5
_ASK = "Ask a question."
_MARGIN = 8  # tokens by which a sentence that was cut may grow when it is encoded anew
_STARTS = regex.compile(rf"\s|[{UNSPACED}]", regex.V1)  # of a token that begins a word
_ENDS = regex.compile(rf"\s$|[{UNSPACED}。！？]$", regex.V1)  # of a token behind which a word begins
_TITLE = regex.compile(r"\W*(Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Figs?|Eq|Vol|vs|cf|ca|approx|e\.g|i\.e)\.\W*")
_NUMBER = regex.compile(r"\W*(\d+|\p{L})\.\s*")  # of a list, where it begins a sentence
_DASHES = regex.compile(r"[\s\p{Pd}]*")
_CLOSES = regex.compile(r"([.!?。！？…][\"'”’)\]]*|\n)\s*$")  # of a word that ends its sentence
_MUTE = regex.compile(r"[\s\p{Po}\p{Ps}\p{Pe}\p{Pi}\p{Pf}--[&%§@#*/\\]]*", flags=regex.V1)  # says nothing


@dataclass(frozen=True)
class Word:
    """A word of a text."""

    text: str
    places: tuple[int, ...]  # of its tokens, without the punctuation around it
    sentence: int


@torch.no_grad()
def rank_words(
    backbone: LanguageModel,
    questions: list[str],
    prompts: list[list[int]],
    written: list[list[int]],
    batch_tokens: int,
    common: Mapping[str, float],
) -> list[list[Word]]:
    """Rank the words of each text, the most telling first.

    Args:
        backbone: the expert's backbone, as published.
        questions: what was asked.
        prompts: the prompts behind which the texts were written.
        written: the texts' tokens.
        batch_tokens: of a forward pass.
        common: the share of the expert's answers that hold a word, for those in more than `RARE`.
    """
    nats = backbone.log_probabilities(prompts, written, batch_tokens)
    words = [split_words(backbone.prompts, ids) for ids in written]
    weights = _relevance(backbone, questions, words, written, batch_tokens)
    return [
        _ranked(question, some, -news, weight, common)
        for question, some, news, weight in zip(questions, words, nats, weights, strict=True)
    ]


def fitting(words: list[Word], slots: int) -> list[Word]:
    """Take the first words that fit into S slots whole, or else the first, in the order of the text."""
    kept: list[Word] = []
    for word in words:
        if sum(len(one.places) for one in [*kept, word]) <= slots:
            kept.append(word)
    return sorted(kept or words[:1], key=lambda word: word.places)


def split_words(prompts: Prompts, ids: list[int]) -> list[Word]:
    """Split a text's tokens into words, and number their sentences."""
    pieces = prompts.pieces(ids)
    groups: list[list[int]] = []  # of pieces
    for i, (_, text) in enumerate(pieces):
        fresh = not groups or _STARTS.match(text) or _ENDS.search(pieces[i - 1][1])
        groups.append([i]) if fresh else groups[-1].append(i)
    words, sentence, begins = [], 0, True
    for group in groups:
        loud = [i for i in group if not _MUTE.fullmatch(pieces[i][1])]
        whole = "".join(pieces[i][1] for i in group)
        if loud and not _DASHES.fullmatch(whole):
            kept = pieces[loud[0] : loud[-1] + 1]
            places = tuple(place for some, _ in kept for place in some)
            words.append(Word("".join(text for _, text in kept), places, sentence))
        goes_on = _TITLE.fullmatch(whole) or (begins and _NUMBER.fullmatch(whole))
        begins = bool(_CLOSES.search(whole)) and not goes_on
        sentence += begins
    return words


def _ranked(
    question: str,
    words: list[Word],
    news: torch.Tensor,
    weights: dict[int, float],
    common: Mapping[str, float],
) -> list[Word]:
    """Order words: the best sentences' before all others, by their news [T]; the question's words last.

    Of these, the nearest to the first word come first: together they read as a phrase.

    A sentence is among the best with at least `NEAR` of the best one's share.
    """
    said, best = set(tokens(question)), max(weights.values(), default=0.0)

    def value(word: Word) -> tuple[bool, bool, float, float]:
        weight = weights.get(word.sentence, 0.0)
        own = tokens(word.text)
        told = 0.0 if said.issuperset(own) else float(news[list(word.places)].sum()) * _rarity(own, common)
        news_of = weight + math.log(told) if told > 0 else weight
        return weight >= math.log(NEAR) + best, told > 0, news_of, weight

    first = max(words, key=value).places[0] if words else 0
    return sorted(words, key=lambda word: (value(word), -abs(word.places[0] - first)), reverse=True)


def _rarity(own: list[str], common: Mapping[str, float]) -> float:
    """Return 1 for a word in few answers, down to 0 for one in all (its inverse document frequency)."""
    return math.log(min(common.get(token, RARE) for token in own)) / math.log(RARE)


def _relevance(
    model: LanguageModel,
    questions: list[str],
    words: list[list[Word]],
    written: list[list[int]],
    batch_tokens: int,
) -> list[dict[int, float]]:
    """Weigh the sentences of each text by how likely the question is behind each of them alone.

    Returns:
        For each text the logarithms of its sentences' shares, which add up to 1; nothing for one sentence.
    """
    prompts = model.prompts
    sentences = [_sentences(some, ids) for some, ids in zip(words, written, strict=True)]
    asked = [(i, number) for i, found in enumerate(sentences) if len(found) > 1 for number in found]
    texts = [prompts.text(questions[i]) for i, _ in asked]
    around, positions = len(prompts.ask_expert("", _ASK)), getattr(model, "positions", None)
    behind = []
    for (i, number), text in zip(asked, texts, strict=True):
        room = None if positions is None else max(1, positions - around - len(text) - _MARGIN)
        behind.append(prompts.ask_expert(prompts.decode(sentences[i][number][:room]), _ASK))
    likely = model.log_probabilities(behind, texts, batch_tokens)
    scores: list[dict[int, float]] = [{} for _ in questions]
    for (i, number), found in zip(asked, likely, strict=True):
        scores[i][number] = float(found.sum())
    return [_shares(found) for found in scores]


def _sentences(words: list[Word], ids: list[int]) -> dict[int, list[int]]:
    """Return the tokens of each sentence, from its first word to the next one's."""
    starts: dict[int, int] = {}
    for word in words:
        starts.setdefault(word.sentence, word.places[0])
    bounds = [*starts.values(), len(ids)]
    return {number: ids[a:b] for number, (a, b) in zip(starts, pairwise(bounds), strict=True)}


def _shares(scores: dict[int, float]) -> dict[int, float]:
    shares = torch.tensor(list(scores.values())).log_softmax(0).tolist() if scores else []
    return dict(zip(scores, shares, strict=True))

"""Scores of one answer against its gold answers: pure functions on texts.

An empty gold answer never matches, an empty answer scores 0, and where there are several golds, the best
counts. Without a gold answer there is no score: that is for the caller to say.

Texts are compared as they are read (gag/project/words.py). `contains_published` alone does as the paper's
code, which knows none of this.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

from gag.project.words import UNSPACED, readable, tokens

_PUBLISHED = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_CHARACTER = regex.compile(rf"([{UNSPACED}]\p{{M}}*)", regex.V1)
_ASIAN_SIGNS = re.compile("[\u3000-\u303f\u30fb\uff61-\uff65]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def contains(answer: str, golds: tuple[str, ...]) -> bool:
    """Say whether any gold's tokens stand in a row in the answer's."""
    words = tokens(answer)
    return any(_is_part(tokens(gold), words) for gold in golds)


def contains_published(answer: str, golds: tuple[str, ...]) -> bool:
    """Say the same on tokens as the paper's code cuts them (its EM): any run of letters is one word."""

    def cut(text: str) -> list[str]:
        return _PUBLISHED.findall(unicodedata.normalize("NFD", text).lower())

    words = cut(answer)
    return any(_is_part(cut(gold), words) for gold in golds)


def share_right(answers: Sequence[str], golds: Sequence[tuple[str, ...]]) -> float:
    """Return the share of answers that contain a gold of theirs, 0..1."""
    return sum(contains(answer, each) for answer, each in zip(answers, golds, strict=True)) / len(answers)


def exact(answer: str, golds: tuple[str, ...]) -> bool:
    """Say whether the answer is a gold in SQuAD's normal form."""
    said = normal(answer)
    return any(said == normal(gold) != "" for gold in golds)


def f1(answer: str, golds: tuple[str, ...]) -> float:
    """Return the best harmonic mean of precision and recall of the words in SQuAD's normal form, 0..1."""
    return max((_overlap(normal(answer).split(), normal(gold).split()) for gold in golds), default=0.0)


def normal(text: str) -> str:
    """Bring a text into SQuAD's normal form: lower case, no punctuation, no articles, single spaces.

    Characters of scripts without spaces stand apart.
    """
    text = _ASIAN_SIGNS.sub(" ", readable(text))
    bare = "".join(character for character in text if character not in string.punctuation)
    without = _ARTICLE.sub(" ", bare)  # an answer that is an A has no article
    return " ".join(_CHARACTER.sub(r" \1 ", without if without.strip() else bare).split())


def _is_part(part: list[str], whole: list[str]) -> bool:
    size = len(part)
    return size > 0 and any(whole[i : i + size] == part for i in range(len(whole) - size + 1))


def _overlap(said: list[str], gold: list[str]) -> float:
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold)) if shared else 0.0

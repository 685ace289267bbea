"""Scores of one answer against its gold answers: pure functions on texts.

An empty gold answer never matches, an empty answer scores 0, and where there are several golds, the best
counts. Without a gold answer there is no score: that is for the caller to say.

Texts are compared as they are read: full-width and raised characters are the plain ones, `1,000` is `1000`,
and of scripts that put no spaces between words each character is a word. `contains_published` alone does as
the paper's code, which knows none of this.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

_PUBLISHED = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_SCRIPTS = "Han Hiragana Katakana Hangul Bopomofo Thai Lao Khmer Myanmar Tibetan"
_UNSPACED = "".join(rf"\p{{{script}}}" for script in _SCRIPTS.split()) + "\u30fc"
_TOKEN = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+|[^\p{{Z}}\p{{C}}]", regex.V1
)
_CHARACTER = regex.compile(rf"([{_UNSPACED}]\p{{M}}*)", regex.V1)
_POWER = re.compile(r"(?<=[0-9])(?=[\u00b2\u00b3\u00b9\u2070-\u2079])")  # 10\u00b2 is 10^2
_APART = re.compile(r"(?<=[0-9])(?=[\u2080-\u2089\u00bc-\u00be\u2150-\u215f])")  # and 1\u00bd is 1 1/2
_THIN_SPACE = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_THOUSANDS = re.compile(
    r"(?<![\d.,'])[1-9]\d{0,2}(?:([,'])\d{3})(?:\1\d{3})*(?![\d,'])|"
    r"(?<![\d.,'])[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,'])"
)
_HIDDEN = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphens, spaces without width
_SIGNS = str.maketrans(
    {"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-", "\u2044": "/",
     "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'}
)  # fmt: skip
_ASIAN_SIGNS = re.compile("[\u3000-\u303f\u30fb\uff61-\uff65]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def tokens(text: str) -> list[str]:
    """Cut text into words, characters of scripts without spaces, and other visible characters."""
    return _TOKEN.findall(_readable(text))


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
    text = _ASIAN_SIGNS.sub(" ", _readable(text))
    bare = "".join(character for character in text if character not in string.punctuation)
    without = _ARTICLE.sub(" ", bare)  # an answer that is an A has no article
    return " ".join(_CHARACTER.sub(r" \1 ", without if without.strip() else bare).split())


def _readable(text: str) -> str:
    """Return lower-case text without variants of width, form and digits, and without marks of thousands."""
    text = _APART.sub(" ", _POWER.sub("^", _THIN_SPACE.sub("", _HIDDEN.sub("", text))))
    plain = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    plain = re.sub(r"[^\W\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), plain)
    return _THOUSANDS.sub(lambda number: re.sub("[,']", "", number[0]), plain).lower()


def _is_part(part: list[str], whole: list[str]) -> bool:
    size = len(part)
    return size > 0 and any(whole[i : i + size] == part for i in range(len(whole) - size + 1))


def _overlap(said: list[str], gold: list[str]) -> float:
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold)) if shared else 0.0

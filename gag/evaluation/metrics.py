"""Scores of one answer against its gold answers: pure functions on texts."""

import unicodedata

import regex

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def tokens(text: str) -> list[str]:
    """Cut NFD, lower-cased text into runs of letters, numbers and marks, and single other visible characters."""
    return _TOKEN.findall(unicodedata.normalize("NFD", text).lower())


def contains(answer: str, golds: tuple[str, ...]) -> bool:
    """Say whether any gold's tokens are a contiguous part of the answer's (the paper's EM); an empty gold never is."""
    words = tokens(answer)
    return any(_is_part(tokens(gold), words) for gold in golds)


def _is_part(part: list[str], whole: list[str]) -> bool:
    size = len(part)
    return size > 0 and any(whole[i : i + size] == part for i in range(len(whole) - size + 1))

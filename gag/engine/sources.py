"""Where an answer is from: the passages of its domain that hold its words best.

The vectors name no document. What the expert wrote and what the base answered are looked up among the
passages that the domain carries (BM25, Robertson and Zaragoza 2009), and those that fit best are named.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gag.errors import ArtifactError
from gag.project.domain import SOURCES, Domain
from gag.project.progress import say
from gag.project.words import tokens

MOST = 3  # sources of an answer
NEAR = 0.7  # of the best one's score, from which another is named beside it
_LETTER_A = re.compile(r"(?<=[\w,:;(] )A\b")
Scorer = Callable[[str], Any]


@dataclass(frozen=True)
class Source:
    """A passage that an answer may rest on.

    Attributes:
        document: where it is from.
        title: the document's.
        section: the headings over it.
        pages: of the document.
        passage: its id in the corpus.
        text: its text.
        score: how well it fits, over the best one's.
    """

    document: str
    title: str
    section: str
    pages: tuple[int, ...]
    passage: str
    text: str
    score: float = 1.0


class SourceIndex:
    """The passages that a domain carries.

    Args:
        passages: all of them.
    """

    def __init__(self, passages: list[Source]):
        self._passages = passages
        self._scores = scorer([f"{one.title} {one.section} {one.text}" for one in passages])

    @classmethod
    def of(cls, domain: Domain) -> "SourceIndex | None":
        """Read a domain's passages; none: it carries none.

        Raises:
            ArtifactError: its file is harmed.
        """
        if SOURCES not in domain.files:
            return None
        domain.check((SOURCES,))
        try:
            return cls(read_sources(domain.folder / SOURCES))
        except (ValueError, LookupError, TypeError) as error:
            raise ArtifactError(f"{domain.name}/{SOURCES} is not whole; build the domain again") from error

    def find(self, question: str, written: str, answer: str) -> list[Source]:
        """Find what an answer may rest on, the best first.

        Args:
            question: what was asked.
            written: what the expert wrote to it.
            answer: what the base answered; it counts twice.
        """
        scores = self._scores(f"{question} {written} {answer} {answer}")
        order = scores.argsort()[::-1][:MOST]
        best = float(scores[order[0]]) if len(order) else 0.0
        if best <= 0.0:
            return []
        found = []
        for place in order:
            share = float(scores[place]) / best
            if share >= NEAR:
                one = self._passages[int(place)]
                found.append(replace(one, score=round(share, 3)))
        return found


def read_sources(path: Path) -> list[Source]:
    """Read the passages that a domain carries."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            document, title, section = (str(row[key]) for key in ("document", "title", "section"))
            pages = tuple(row["pages"])
            found.append(Source(document, title, section, pages, str(row["id"]), str(row["text"])))
    return found


def scorer(texts: list[str]) -> Scorer:
    """Index texts by their words -> a function that scores each of them for a query [N]."""
    import bm25s
    import numpy as np

    words = [search_words(text) for text in texts]
    known = {word for each in words for word in each}
    index = bm25s.BM25()
    if known:
        index.index(words, show_progress=False)
    else:
        say("BM25: no passage holds a word, so it finds nothing")

    def score(query: str) -> Any:
        asked = [word for word in search_words(query) if word in known]
        return index.get_scores(asked) if asked else np.zeros(len(texts))

    return score


def search_words(text: str) -> list[str]:
    """Cut a text to words, single letters, numbers and characters of scripts without spaces.

    English function words are left out, but for an A that begins no sentence: it is a name.
    """
    from bm25s.stopwords import STOPWORDS_EN

    words = [word for word in tokens(text) if word[0].isalnum()]
    kept = [word for word in words if word not in STOPWORDS_EN or len(words) == 1]
    return kept + ["a"] * len(_LETTER_A.findall(text))

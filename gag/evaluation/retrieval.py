"""Retrieval over a domain's passages: BM25, also with a rewritten query, dense vectors, late interaction."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from gag.engine.sources import scorer
from gag.evaluation.bertscore import TokenStates
from gag.evaluation.token_index import TokenIndex
from gag.project.rows import Passage
from gag.project.words import tokens
from gag.routing.query_encoder import QueryEncoder

TOP, QUICK_TOP = (1, 2, 3, 5, 9), (1, 3, 9)
Ranking = list[list[int]]  # of each question: the passages' numbers, best first
Retriever = Callable[[Sequence[str], int], Ranking]


def bm25(passages: list[Passage]) -> Retriever:
    """Index passages by their words; where no word of a question stands in them, they keep their order."""
    score = scorer([passage.text for passage in passages])

    def retrieve(questions: Sequence[str], count: int) -> Ranking:
        return [(-score(question)).argsort(kind="stable")[:count].tolist() for question in questions]

    return retrieve


def rewritten(passages: list[Passage]) -> Retriever:
    """Search twice: words that the best passage shares with the query give way to its others.

    That passage stays first.
    """
    search = bm25(passages)

    def rewrite(question: str, passage: str) -> str:
        ours, theirs = tokens(question), tokens(passage)
        missing = [word for word in ours if word not in theirs]
        return " ".join(missing + [word for word in theirs if word not in ours])

    def retrieve(questions: Sequence[str], count: int) -> Ranking:
        first = [row[0] for row in search(questions, 1)]
        again = search([rewrite(q, passages[i].text) for q, i in zip(questions, first, strict=True)], count)
        return [[i, *(j for j in row if j != i)][:count] for i, row in zip(first, again, strict=True)]

    return retrieve


def dense(passages: list[Passage], encoder: QueryEncoder) -> Retriever:
    """Index passages by one vector each."""
    vectors = encoder.encode([p.text for p in passages])  # [N, D]

    def retrieve(questions: Sequence[str], count: int) -> Ranking:
        scores = encoder.encode(list(questions)) @ vectors.T
        return scores.topk(min(count, len(passages)), dim=1).indices.tolist()

    return retrieve


class LateEncoder(Protocol):
    """What turns questions and passages into the unit states of their tokens, [T, D] of each."""

    def questions(self, texts: list[str]) -> list[torch.Tensor]:
        """Encode questions."""
        ...

    def passages(self, texts: list[str]) -> list[torch.Tensor]:
        """Encode passages."""
        ...


class PlainStates:
    """Token states that know no difference between questions and passages."""

    def __init__(self, encoder: TokenStates):
        self._encoder = encoder

    def questions(self, texts: list[str]) -> list[torch.Tensor]:
        """Encode texts."""
        return [torch.cat([piece.states for piece in pieces]) for pieces in self._encoder.pieces(texts)]

    passages = questions


def late_interaction(passages: list[Passage], encoder: LateEncoder) -> tuple[Retriever, int]:
    """Index passages by their token states; each of a question's takes its best match (ColBERT's MaxSim).

    Returns:
        the search, and the bytes of the index.
    """
    index = TokenIndex([passage.text for passage in passages], encoder.passages)

    def retrieve(questions: Sequence[str], count: int) -> Ranking:
        return [index.search(states, count) for states in encoder.questions(list(questions))]

    return retrieve, index.bytes

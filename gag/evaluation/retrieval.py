"""Retrieval over a domain's passages: BM25, also with a rewritten query, dense vectors, late interaction."""

from collections.abc import Callable, Sequence

import torch

from gag.engine.sources import scorer
from gag.evaluation.bertscore import Pieces, TokenStates
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


def late_interaction(passages: list[Passage], encoder: TokenStates) -> Retriever:
    """Index passages by their token states; each of a question's takes its best match (ColBERT's MaxSim)."""
    rows = [_joined(pieces) for pieces in encoder.pieces([p.text for p in passages])]
    index, sizes = torch.cat(rows), torch.tensor([len(row) for row in rows])  # [all tokens, D]

    def retrieve(questions: Sequence[str], count: int) -> Ranking:
        found = []
        for pieces in encoder.pieces(list(questions)):
            cosines = index @ _joined(pieces).T  # [all tokens, Q]
            best = torch.segment_reduce(cosines, "max", lengths=sizes, axis=0).sum(1)  # [N]
            found.append(best.topk(min(count, len(passages))).indices.tolist())
        return found

    return retrieve


def _joined(pieces: list[Pieces]) -> torch.Tensor:
    return torch.cat([piece.states for piece in pieces])

"""Answer the same questions in different ways: GAG, its controls, the base alone, knowledge as text, retrieval."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from gag.engine import GAG, Knowledge
from gag.records import Example, Passage

BATCH = 128
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Arm:
    """One way's answers, and the knowledge tokens that it added to the base's prompt, per question on average."""

    texts: list[str]
    tokens_added: float


@dataclass(frozen=True)
class Case:
    """A test question, the question whose vector is the wrong one for it, and passages with the gold among them."""

    example: Example
    shuffled: Example
    reading: str


def answer_all(gag: GAG, domain: str, cases: list[Case], corpus: list[Passage]) -> dict[str, Arm]:
    """Answer every case in every way."""
    questions = [case.example.question for case in cases]
    known = _know(gag, questions, domain)
    wrong = _know(gag, [case.shuffled.question for case in cases], domain)
    zero = [replace(k, vectors=torch.zeros_like(k.vectors)) for k in known]
    return {
        "base": _arm(gag, [gag.embed(q, domain, None) for q in questions]),
        "gag": _injected(gag, domain, questions, known),
        "shuffled": _injected(gag, domain, questions, wrong),
        "zero": _injected(gag, domain, questions, zero),
        "expert_text": _with_text(gag, domain, questions, [k.text for k in known]),
        "expert": Arm([k.text for k in known], 0.0),
        "bm25": _with_text(gag, domain, questions, retrieve(questions, corpus)),
        "reading": _with_text(gag, domain, questions, [case.reading for case in cases]),
    }


def retrieve(questions: list[str], corpus: list[Passage]) -> list[str]:
    """Return the best passage by BM25 for each question."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize([p.text for p in corpus], show_progress=False), show_progress=False)
    queries = bm25s.tokenize(questions, show_progress=False)
    best = index.retrieve(queries, k=1, show_progress=False).documents  # pyright: ignore[reportAttributeAccessIssue]
    return [corpus[int(i)].text for i in best[:, 0]]


def _know(gag: GAG, questions: list[str], domain: str) -> list[Knowledge]:
    return _batched(questions, lambda batch: gag.know(batch, domain))


def _injected(gag: GAG, domain: str, questions: list[str], knowledge: list[Knowledge]) -> Arm:
    rows = [gag.embed(q, domain, k) for q, k in zip(questions, knowledge, strict=True)]
    return _arm(gag, rows, [len(k.vectors) for k in knowledge])


def _with_text(gag: GAG, domain: str, questions: list[str], texts: list[str]) -> Arm:
    prompts, instruction = gag.base.prompts, gag.domains[domain].facts.prompts.answer
    rows = [gag.base.embed(prompts.with_text(q, instruction, text)) for q, text in zip(questions, texts, strict=True)]
    return _arm(gag, rows, [len(prompts.text(text)) for text in texts])


def _arm(gag: GAG, rows: list[torch.Tensor], added: list[int] | None = None) -> Arm:
    return Arm(_batched(rows, gag.generate), sum(added or []) / len(rows))


def _batched(items: list[A], work: Callable[[list[A]], list[B]]) -> list[B]:
    return [out for start in range(0, len(items), BATCH) for out in work(items[start : start + BATCH])]

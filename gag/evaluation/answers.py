"""Answer the same questions in different ways: GAG, its controls, the base alone, and knowledge as text in the prompt."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from gag.engine.engine import GAG, Knowledge
from gag.engine.pool import Module
from gag.evaluation.retrieval import bm25
from gag.models.backbone import Backbone
from gag.models.language_model import pad_left
from gag.project.rows import Example, Passage
from gag.project.settings import GENERAL

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
    """Answer every case in every way that the demo shows."""
    questions = [case.example.question for case in cases]
    known = know(gag, questions, domain)
    wrong = know(gag, [case.shuffled.question for case in cases], domain)
    best = bm25(corpus)(questions, 1)
    return {
        "base": plain(gag, questions),
        "gag": injected(gag, domain, questions, known),
        "shuffled": injected(gag, domain, questions, wrong),
        "zero": injected(gag, domain, questions, nulled(known)),
        "expert_text": with_text(gag, domain, questions, [k.text for k in known]),
        "expert": Arm([k.text for k in known], 0.0),
        "bm25": with_text(gag, domain, questions, [corpus[row[0]].text for row in best]),
        "reading": with_text(gag, domain, questions, [case.reading for case in cases]),
    }


def know(gag: GAG, questions: list[str], domain: str, module: Module | None = None) -> list[Knowledge]:
    """Read a domain's expert on questions, batch by batch."""
    return batched(questions, lambda batch: gag.know(batch, domain, module))


def nulled(known: list[Knowledge]) -> list[Knowledge]:
    """Put zero vectors in the place of the knowledge."""
    return [replace(k, vectors=torch.zeros_like(k.vectors)) for k in known]


def plain(gag: GAG, questions: list[str], new: int | None = None) -> Arm:
    """Let the base answer alone."""
    return answered(gag, [gag.embed(q, GENERAL, None) for q in questions], new=new)


def injected(
    gag: GAG, domain: str, questions: list[str], known: list[Knowledge], new: int | None = None
) -> Arm:
    """Let the base answer with knowledge vectors in its prompt."""
    rows = [gag.embed(q, domain, k) for q, k in zip(questions, known, strict=True)]
    return answered(gag, rows, [len(k.vectors) for k in known], new)


def with_text(gag: GAG, domain: str, questions: list[str], texts: list[str], new: int | None = None) -> Arm:
    """Let the base answer with knowledge as text in the place of the vectors."""
    prompts, instruction = gag.base.prompts, gag.domains[domain].facts.prompts.answer
    rows = [
        gag.base.embed(prompts.with_text(q, instruction, text))
        for q, text in zip(questions, texts, strict=True)
    ]
    return answered(gag, rows, [len(prompts.text(text)) for text in texts], new)


def answered(
    gag: GAG, rows: list[torch.Tensor], added: list[int] | None = None, new: int | None = None
) -> Arm:
    """Decode prompts, each [T, Db], greedily with as many new tokens as the project allows, or `new`."""
    return Arm(
        decoded(gag.base, rows, new or gag.project.settings.decoding.max_new_tokens),
        sum(added or []) / len(rows),
    )


def decoded(model: Backbone, rows: list[torch.Tensor], new: int) -> list[str]:
    """Decode prompts, each [T, D], batch by batch."""
    return batched(
        rows, lambda batch: [model.prompts.decode(ids) for ids in model.generate(pad_left(batch), new)]
    )


def times_of(work: Callable[[], object], rounds: int = 5) -> list[float]:
    """Return the seconds of some work in each round, least first, after one warm-up."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])


def batched(items: list[A], work: Callable[[list[A]], list[B]]) -> list[B]:
    """Do some work batch by batch."""
    return [out for start in range(0, len(items), BATCH) for out in work(items[start : start + BATCH])]

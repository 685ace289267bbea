"""Answer the same questions by several methods: GAG, its controls, the base alone, and knowledge as text."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from gag.engine.answer import Knowledge
from gag.engine.engine import ProjectGAG
from gag.engine.pool import Module
from gag.evaluation.retrieval import bm25
from gag.models.language_model import LanguageModel, Request, generate
from gag.project.rows import Example, Passage
from gag.project.settings import GENERAL

BATCH = 128
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class MethodResult:
    """A method's answers, and the tokens that it added to the base's prompt, per question on average."""

    texts: list[str]
    tokens_added: float


@dataclass(frozen=True)
class Case:
    """A test question, the question whose vectors are wrong for it, and passages with the gold among them."""

    example: Example
    shuffled: Example
    reading: str


def answer_cases(
    gag: ProjectGAG, domain: str, cases: list[Case], corpus: list[Passage]
) -> dict[str, MethodResult]:
    """Answer every case by each method that the demo shows."""
    questions = [case.example.question for case in cases]
    knowledge = knowledge_of(gag, questions, domain)
    wrong = knowledge_of(gag, [case.shuffled.question for case in cases], domain)
    best = bm25(corpus)(questions, 1)
    return {
        "base": alone(gag, questions),
        "gag": injected(gag, domain, questions, knowledge),
        "shuffled": injected(gag, domain, questions, wrong),
        "zero": injected(gag, domain, questions, zeroed(knowledge)),
        "expert_text": with_text(gag, domain, questions, [k.text for k in knowledge]),
        "expert": MethodResult([k.text for k in knowledge], 0.0),
        "bm25": with_text(gag, domain, questions, [corpus[row[0]].text for row in best]),
        "reading": with_text(gag, domain, questions, [case.reading for case in cases]),
    }


def knowledge_of(
    gag: ProjectGAG, questions: list[str], domain: str, module: Module | None = None
) -> list[Knowledge]:
    """Read a domain's expert on questions, batch by batch; by its own module, or another of this expert."""
    return batched(questions, lambda batch: gag.read(batch, domain, module))


def zeroed(knowledge: list[Knowledge]) -> list[Knowledge]:
    """Put zero vectors in the place of the knowledge."""
    return [replace(k, vectors=torch.zeros_like(k.vectors)) for k in knowledge]


def alone(gag: ProjectGAG, questions: list[str], max_new_tokens: int | None = None) -> MethodResult:
    """Let the base answer alone."""
    return answered(gag, [gag.prompt(q, GENERAL, None) for q in questions], max_new_tokens=max_new_tokens)


def injected(
    gag: ProjectGAG,
    domain: str,
    questions: list[str],
    knowledge: list[Knowledge],
    max_new_tokens: int | None = None,
) -> MethodResult:
    """Let the base answer with knowledge vectors in its prompt."""
    rows = [gag.prompt(q, domain, k) for q, k in zip(questions, knowledge, strict=True)]
    return answered(gag, rows, [len(k.vectors) for k in knowledge], max_new_tokens)


def with_text(
    gag: ProjectGAG, domain: str, questions: list[str], texts: list[str], max_new_tokens: int | None = None
) -> MethodResult:
    """Let the base answer with knowledge as text in the place of the vectors."""
    prompts, words = gag.base.prompts, gag.domains.facts(domain).prompts
    rows = [
        gag.base.embed(prompts.with_text(q, words, text)) for q, text in zip(questions, texts, strict=True)
    ]
    return answered(gag, rows, [len(prompts.text(text)) for text in texts], max_new_tokens)


def answered(
    gag: ProjectGAG,
    rows: list[torch.Tensor],
    added: list[int] | None = None,
    max_new_tokens: int | None = None,
) -> MethodResult:
    """Decode prompts, each [T, Db], greedily; `added` are the tokens that the method put into each.

    Without `max_new_tokens` an answer may be as long as decoding.max_new_tokens.
    """
    longest = max_new_tokens or gag.project.settings.decoding.max_new_tokens
    return MethodResult(decoded(gag.base, rows, longest), sum(added or []) / len(rows))


def decoded(model: LanguageModel, rows: list[torch.Tensor], max_new_tokens: int) -> list[str]:
    """Decode prompts, each [T, D], batch by batch."""

    def decode(batch: list[torch.Tensor]) -> list[str]:
        written = generate(model, [Request(row, max_new_tokens) for row in batch])
        return [model.prompts.decode(generation.ids) for generation in written]

    return batched(rows, decode)


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

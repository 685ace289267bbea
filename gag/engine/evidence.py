"""Was the knowledge used? How much likelier the injected vectors make an answer than null vectors do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gag.engine.answer import Answer, Knowledge
from gag.engine.engine import GAG, ProjectGAG
from gag.project.settings import GENERAL
from gag.routing.state import near_questions


@dataclass(frozen=True)
class Evidence:
    """What an answer rests on."""

    support: (
        float | None
    )  # nats per token that the vectors add to the answer's log-likelihood; None: nothing to weigh
    questions: list[
        tuple[str, float]
    ]  # nearest questions with their cosines, where the domain carries its questions


def evidence_of(gag: ProjectGAG, answer: Answer) -> Evidence:
    """Say what an answer rests on: its support, and the nearest questions that its domain carries."""
    domain, knowledge = answer.route.domain, answer.knowledge
    if domain == GENERAL or knowledge is None:
        return Evidence(None, [])
    vector = gag.router.encoder.encode([answer.question])[0]
    near = near_questions(gag.project.domain(domain), vector)
    return Evidence(support(gag, [answer.question], [answer.text], domain, [knowledge])[0], near)


@torch.no_grad()
def support(
    gag: GAG,
    questions: Sequence[str],
    answers: Sequence[str],
    domain: str,
    knowledge: Sequence[Knowledge],
) -> list[float | None]:
    """Weigh answers of one domain against zero vectors.

    Returns: For each, log p(answer | vectors) - log p(answer | zero vectors) per token, in nats; None for an
        empty answer.
    """
    null = [replace(one, vectors=torch.zeros_like(one.vectors)) for one in knowledge]
    ids = [gag.base.prompts.answer(answer)[:-1] for answer in answers]
    with_vectors = _log_likelihoods(gag, _prompts(gag, questions, domain, knowledge), ids)
    without = _log_likelihoods(gag, _prompts(gag, questions, domain, null), ids)
    pairs = zip(with_vectors, without, ids, strict=True)
    return [round((a - b) / len(row), 4) if row else None for a, b, row in pairs]


def _prompts(
    gag: GAG, questions: Sequence[str], domain: str, knowledge: Sequence[Knowledge]
) -> list[torch.Tensor]:
    return [gag.prompt(question, domain, one) for question, one in zip(questions, knowledge, strict=True)]


def _log_likelihoods(gag: GAG, prompts: Sequence[torch.Tensor], answers: Sequence[list[int]]) -> list[float]:
    """Sum the log probabilities of answers' tokens after their prompts, each [T, Db]."""
    longest = max((len(p) + len(ids) for p, ids in zip(prompts, answers, strict=True)), default=0)
    found = gag.base.log_probabilities(prompts, answers, longest * len(prompts))
    return [float(row.sum()) for row in found]

"""Was the knowledge used? How much likelier the injected vectors make an answer than null vectors do."""

from dataclasses import replace
from typing import Any

import torch

from gag.engine.engine import GAG, Answer, Knowledge
from gag.models.backbone import pad_left
from gag.project.settings import GENERAL
from gag.routing.bank import QUESTIONS, load_questions


def evidence_of(gag: GAG, answer: Answer) -> dict[str, Any]:
    """Say what an answer rests on: its support, and the nearest training questions where the domain carries them."""
    domain = answer.route.domain
    if domain == GENERAL:
        return {"support": None, "questions": []}
    known = gag.know([answer.question], domain)
    carried = (gag.domains[domain].folder / QUESTIONS).is_file()
    near = (
        load_questions(gag.domains[domain].folder).nearest(gag.router.encoder.encode([answer.question])[0], 3)
        if carried
        else []
    )
    return {"support": support(gag, [answer.question], [answer.text], domain, known)[0], "questions": near}


@torch.no_grad()
def support(
    gag: GAG, questions: list[str], answers: list[str], domain: str, known: list[Knowledge]
) -> list[float | None]:
    """Return log p(answer | vectors) - log p(answer | zero vectors) per token, in nats; None for an empty answer."""
    null = [replace(k, vectors=torch.zeros_like(k.vectors)) for k in known]
    ids = [gag.base.prompts.text(answer) for answer in answers]
    with_knowledge = _log_probability(
        gag, [gag.embed(q, domain, k) for q, k in zip(questions, known, strict=True)], ids
    )
    without = _log_probability(
        gag, [gag.embed(q, domain, k) for q, k in zip(questions, null, strict=True)], ids
    )
    pairs = zip(with_knowledge, without, ids, strict=True)
    return [round((a - b) / len(row), 4) if row else None for a, b, row in pairs]


def _log_probability(gag: GAG, prompts: list[torch.Tensor], answers: list[list[int]]) -> list[float]:
    """Sum the log probabilities of answers' tokens after their prompts, each [T, Db]."""
    rows = [
        torch.cat([prompt, gag.base.embed(ids)]) if ids else prompt
        for prompt, ids in zip(prompts, answers, strict=True)
    ]
    inputs = pad_left(rows)
    states = gag.base.model.get_decoder()(
        inputs_embeds=inputs.embeds,
        attention_mask=inputs.mask,
        position_ids=inputs.positions,
        use_cache=False,
    ).last_hidden_state
    sums = []
    for state, ids in zip(states, answers, strict=True):
        before = state[len(state) - len(ids) - 1 : len(state) - 1]  # the state before each answer token
        chances = gag.base.logits(before).float().log_softmax(-1)
        sums.append(float(chances[range(len(ids)), ids].sum()) if ids else 0.0)
    return sums

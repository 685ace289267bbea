"""Behind stage II: how much of what the expert writes reaches the base's answers.

Validation questions are asked four ways: the base alone, with their vectors, with another question's
vectors, and with the expert's text in the vectors' place. An answer counts by the gold answer's words that
the question does not hold. The transfer is what the vectors add over another question's, as a share of what
the text adds to the base: 1 where they carry what the text carries, 0 where nothing of the question's own.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from pydantic import TypeAdapter

from gag.models.backbone import Backbone
from gag.models.language_model import Request, generate
from gag.models.loading import load_backbone
from gag.project import distributed
from gag.project.artifacts import is_current, read_manifest, writing
from gag.project.domain import TransferFacts
from gag.project.inputs import DomainInputs
from gag.project.keys import stage_key
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import Example
from gag.project.words import tokens
from gag.projection.injection import inject
from gag.projection.modules import load_projector
from gag.readout.store import StoredReadouts, read_store
from gag.stages import align, readouts

MOST = 128  # questions asked
ROUNDS = 2000  # of the bootstrap
LEAST = 0.1  # that the text must add to the base, or nothing can be said
SEED = 7


def transfer(project: Project, domain: str) -> TransferFacts:
    """Measure the transfer of a domain that is aligned; it is kept until its projector changes.

    Raises:
        ArtifactError: the projector or the readouts are not there, or were made from other inputs.
    """
    inputs = project.inputs(domain)
    read_from = readouts.key(inputs)  # all processes ask for it together
    folder, wanted = inputs.run("transfer"), stage_key(align=align.key(inputs), most=MOST)
    if not distributed.broadcast(lambda: is_current(folder, wanted)):
        if distributed.rank() == 0:
            found = _measure(inputs, read_from)
            with writing(folder, {"key": wanted, "transfer": asdict(found)}):
                pass
        distributed.barrier()
    found = TypeAdapter(TransferFacts).validate_python(read_manifest(folder)["transfer"])
    say(f"transfer {domain}: {found.line}")
    if advice := found.advice(inputs.settings.readout):
        say(f"  {advice}")
    return found


def _measure(inputs: DomainInputs, readouts_key: str) -> TransferFacts:
    model = load_backbone(inputs.settings.base, inputs.root)
    stored, aligned = (read_store(inputs.run("readouts") / split, readouts_key) for split in ("val", "align"))
    fits = _fitting(inputs, model, stored.texts)
    order = random.Random(SEED).sample(fits, min(MOST, len(fits)))
    rows = [inputs.splits.val[i] for i in order]
    if not rows:
        return TransferFacts(questions=0, base=0.0, gag=0.0, shuffled=0.0, text=0.0)
    vectors = _vectors(inputs, model, stored, order)
    wrong = _vectors(inputs, model, aligned, _others(rows, inputs.splits.align))
    answers = _answers(inputs, model, rows, vectors, wrong, [stored.texts[i] for i in order])
    scores = {
        way: np.array([told(row, text) for row, text in zip(rows, texts, strict=True)])
        for way, texts in answers.items()
    }
    base, gag, shuffled, text = (
        round(float(scores[way].mean()), 4) for way in ("base", "gag", "shuffled", "text")
    )
    carried, possible = scores["gag"] - scores["shuffled"], scores["text"] - scores["base"]
    found = TransferFacts(questions=len(rows), base=base, gag=gag, shuffled=shuffled, text=text)
    if possible.mean() < LEAST:
        return found
    share = round(float(carried.mean() / possible.mean()), 4)
    return replace(found, transfer=share, interval=_interval(carried, possible))


def told(row: Example, answer: str) -> float:
    """Return the share of the gold answer's words that an answer holds, beyond those of the question.

    Of several gold answers the best one counts; one that adds no word to its question counts whole.
    """
    said, asked = set(tokens(answer)), set(tokens(row.question))
    shares = []
    for gold in row.answers:
        words = {word for word in tokens(gold) if any(map(str.isalnum, word))}
        fresh = words - asked or words
        shares.append(len(fresh & said) / len(fresh) if fresh else 0.0)
    return max(shares)


def _vectors(
    inputs: DomainInputs, base: Backbone, stored: StoredReadouts, order: Sequence[int]
) -> torch.Tensor:
    """Project the stored readouts of some rows -> [N, S, Db]."""
    settings, width = inputs.settings, stored.facts["expert"]["width"]
    kind = settings.align.projector
    projector = load_projector(inputs.run("align"), kind, settings.readout, width, base.width)
    with torch.no_grad():
        return projector.to(base.device)(stored.slots[list(order)].to(base.device))


def _answers(
    inputs: DomainInputs,
    base: Backbone,
    rows: list[Example],
    vectors: torch.Tensor,
    wrong: torch.Tensor,
    texts: list[str],
) -> dict[str, list[str]]:
    """Answer the rows four ways, each as long as its gold answer may be."""
    prompts, words = base.prompts, inputs.prompts
    around = [prompts.with_knowledge(row.question, words) for row in rows]
    budget = _budget(base, rows)
    ways = {
        "base": [base.embed(prompts.plain(row.question)) for row in rows],
        "gag": [inject(base, one, own) for one, own in zip(around, vectors, strict=True)],
        "shuffled": [inject(base, one, other) for one, other in zip(around, wrong, strict=True)],
        "text": [
            base.embed(prompts.with_text(row.question, words, text))
            for row, text in zip(rows, texts, strict=True)
        ],
    }
    size, answers = inputs.settings.decoding.batch_size, {}
    with bar(f"transfer {inputs.name}", len(ways) * len(rows)) as advance:
        for way, embedded in ways.items():
            answers[way] = []
            for start in range(0, len(rows), size):
                requests = [Request(row, budget) for row in embedded[start : start + size]]
                answers[way] += [prompts.decode(written.ids) for written in generate(base, requests)]
                advance(len(requests))
    return answers


def _fitting(inputs: DomainInputs, base: Backbone, texts: list[str]) -> list[int]:
    """Return the rows whose prompt with the expert's text has room in the base's positions."""
    rows, prompts = inputs.splits.val, base.prompts
    if base.positions is None:
        return list(range(len(rows)))
    room = base.positions - _budget(base, rows) - inputs.settings.readout.slots
    lengths = [
        len(prompts.with_text(row.question, inputs.prompts, text))
        for row, text in zip(rows, texts, strict=True)
    ]
    return [i for i, length in enumerate(lengths) if length <= room]


def _budget(base: Backbone, rows: list[Example]) -> int:
    """Return how long an answer may be: as the longest gold, and a little more."""
    return max(len(base.prompts.answer(row.answers[0])) for row in rows) + 8


def _others(rows: list[Example], aligned: list[Example]) -> list[int]:
    """Return for each row an alignment row whose answer is another; any, where all have one answer."""
    rng = random.Random(SEED)
    found = []
    for row in rows:
        others = [i for i, other in enumerate(aligned) if other.answers != row.answers]
        found.append(rng.choice(others or range(len(aligned))))
    return found


def _interval(carried: np.ndarray, possible: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of a ratio of means, by bootstrap over the questions.

    Of draws in which the text adds too little, nothing can be said, as of all questions.
    """
    draws = np.random.default_rng(0).integers(0, len(carried), (ROUNDS, len(carried)))
    below = possible[draws].mean(1)
    ratios = carried[draws].mean(1)[below >= LEAST] / below[below >= LEAST]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)

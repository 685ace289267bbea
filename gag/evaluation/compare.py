"""`gag compare`: build what is compared, ask every method the same questions, score the answers, report."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gag.engine.engine import LocalGAG
from gag.errors import SettingsError
from gag.evaluation.comparison import (
    Comparison,
    MethodFigures,
    Provenance,
    SliceFigures,
    WorstAnswer,
    kind_of,
)
from gag.evaluation.costs import Cost, Resident, resident
from gag.evaluation.intervals import interval, paired
from gag.evaluation.labelled import LabelledQuestion
from gag.evaluation.method_answers import MethodAnswers, method_answers
from gag.evaluation.methods import RETRIEVAL, Method, known_methods, methods_of, passages_of, retrieval_named
from gag.evaluation.questions import Questions, draw_questions, slices_of
from gag.evaluation.report import REPORT, write_report
from gag.evaluation.scoring import Scorer
from gag.project.artifacts import locked, write_json
from gag.project.keys import stage_key
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import write_rows
from gag.stages.align import align
from gag.stages.readouts import readouts

WORST = 8
FIGURES = "compare.json"


@dataclass(frozen=True)
class Outcome:
    """A method's answers and a score of each; it does not hold the method, whose model is let go."""

    label: str
    cost: Cost
    answers: MethodAnswers
    scores: list[float]
    in_context: list[float] | None  # whether a gold stands in the text that the method adds
    general: list[float]
    forced: list[float]


def run_comparison(
    project: Project, domain: str, names: list[str] | None, quick: bool
) -> tuple[Comparison, Path]:
    """Compare methods on a domain -> what was found, and its page.

    Default: all methods; with `quick`, all but the variants. Variants are built first, and wrong settings of
    theirs are refused before any work.
    """
    methods, variants = known_methods(project), project.settings.evaluation.variants
    chosen = names or [name for name in methods if not quick or name not in variants]
    if unknown := [name for name in chosen if name not in methods and not retrieval_named(name)]:
        raise SettingsError(f"no method {unknown[0]!r}; --methods takes {', '.join(methods)}")
    if "colbert" in map(kind_of, chosen) and "colbert" not in methods:
        raise SettingsError("colbert: name a ColBERT checkpoint in gag.yaml, as evaluation.colbert")
    others = [project.under(name) for name in chosen if name in variants]
    with locked(project.root / "runs"):
        for other in others:
            readouts(other, domain)
            align(other, domain)
        comparison = compare(project, domain, chosen, quick)
        return comparison, write_report(project.run(domain, "compare"), comparison)


def compare(project: Project, domain: str, names: list[str], quick: bool) -> Comparison:
    """Answer a domain's test questions by each method; write answers and figures to runs/<domain>/compare.

    Each method's answers are kept as soon as they stand: a comparison that was cut goes on with the next.
    """
    started = time.monotonic()
    asked = draw_questions(project, domain, quick)
    slices = slices_of(asked.rows, passages_of(project, domain))
    gag = LocalGAG(project)
    scorer, metric = Scorer(gag), project.settings.evaluation.of(domain, domain)[0]
    scorer.prepare([metric, *(["similarity"] if "dense" in map(kind_of, names) else [])])
    folder = project.run(domain, "compare")
    outcomes: dict[str, Outcome] = {}
    for method in methods_of(project, gag, domain, names, quick):
        answers = method_answers(folder / "methods", gag, domain, method, asked)
        outcome = outcomes[method.name] = _outcome(method, answers, asked, scorer, metric)
        say(f"compare {domain}: {method.label} {_mean(outcome.scores[: asked.tested]):.3f}")
    figures = _all_figures(outcomes, asked.tested)
    comparison = Comparison(
        domain=domain,
        metric=metric,
        questions=asked.tested,
        quick=quick,
        methods=figures,
        slices={name: _slice(outcomes, places) for name, places in slices.items()},
        worst=_worst(asked.rows[: asked.tested], outcomes),
        memory=_memory(gag, domain, figures),
        facts=_provenance(project, gag, domain),
        seconds=round(time.monotonic() - started, 1),
    )
    _write(folder, asked, outcomes, comparison)
    return comparison


def _outcome(
    method: Method, answers: MethodAnswers, asked: Questions, scorer: Scorer, metric: str
) -> Outcome:
    context = None if method.context is None else method.context(asked.texts)
    return Outcome(
        label=method.label,
        cost=method.cost,
        answers=answers,
        scores=scorer.score(metric, answers.texts, asked.golds),
        in_context=None if context is None else scorer.score("contains", context, asked.golds),
        general=_general(scorer, answers.general, asked),
        forced=_general(scorer, answers.forced or answers.general, asked),
    )


def _general(scorer: Scorer, texts: list[str], asked: Questions) -> list[float]:
    return scorer.score("contains", texts, [row.answers for row in asked.general]) if texts else []


def _all_figures(outcomes: dict[str, Outcome], tested: int) -> dict[str, MethodFigures]:
    """Take each method's figures over the test questions, and by how much GAG leads it on them."""
    figures = {name: _figures(outcome, tested) for name, outcome in outcomes.items()}
    if "gag" not in outcomes:
        return figures
    ours = outcomes["gag"].scores[:tested]
    leads = {name: paired(ours, outcomes[name].scores[:tested]) for name in outcomes if name != "gag"}
    return {name: replace(found, gag_leads_by=leads.get(name)) for name, found in figures.items()}


def _figures(outcome: Outcome, tested: int) -> MethodFigures:
    answers, cost, scores = outcome.answers, outcome.cost, outcome.scores[:tested]
    return MethodFigures(
        label=outcome.label,
        quality=_mean(scores),
        interval=interval(scores),
        in_context=None if outcome.in_context is None else _mean(outcome.in_context[:tested]),
        tokens_added=round(answers.tokens_added, 2),
        general=_mean(outcome.general) if outcome.general else None,
        general_forced=_mean(outcome.forced) if outcome.forced else None,
        build_seconds=cost.seconds,
        build_mb=None if cost.peak_bytes is None else round(cost.peak_bytes / 1e6, 1),
        disk_mb=None if cost.disk_bytes is None else round(cost.disk_bytes / 1e6, 2),
        first_token_ms=answers.first_token_ms,
        per_token_ms=answers.per_token_ms,
    )


def _slice(outcomes: dict[str, Outcome], places: list[int]) -> SliceFigures:
    return SliceFigures(
        questions=len(places),
        quality={name: _mean([o.scores[i] for i in places]) for name, o in outcomes.items()},
        in_context={
            name: _mean([o.in_context[i] for i in places]) for name, o in outcomes.items() if o.in_context
        },
    )


def _worst(rows: list[LabelledQuestion], outcomes: dict[str, Outcome]) -> list[WorstAnswer]:
    """Take GAG's worst answers, with what other methods say."""
    if "gag" not in outcomes:
        return []
    scores = outcomes["gag"].scores
    retrieval = [name for name in outcomes if kind_of(name) in RETRIEVAL]
    best = max(retrieval, key=lambda name: sum(outcomes[name].scores), default=None)
    shown = [name for name in ("gag", "text", "expert", best) if name in outcomes]
    texts = {name: outcomes[name].answers.texts for name in shown}
    worst = sorted(range(len(rows)), key=lambda i: (scores[i], i))[:WORST]
    return [
        WorstAnswer(rows[i].question, rows[i].answers[0], {name: texts[name][i] for name in shown})
        for i in worst
    ]


def _memory(gag: LocalGAG, domain: str, figures: dict[str, MethodFigures]) -> Resident:
    index = next((found.disk_mb for name, found in figures.items() if kind_of(name) == "dense"), None)
    return resident(gag, domain, figures["lora"].disk_mb if "lora" in figures else None, index)


def _provenance(project: Project, gag: LocalGAG, domain: str) -> Provenance:
    facts = gag.domains.facts(domain)
    return Provenance(
        base=facts.base,
        expert=facts.expert,
        readout=facts.readout,
        projector=facts.projector,
        data=facts.data,
        created=facts.created,
        decoding=project.settings.decoding,
        passages=len(passages_of(project, domain)),
        dense_encoder=project.settings.evaluation.similarity,
        colbert=project.settings.evaluation.colbert,
    )


def _write(folder: Path, asked: Questions, outcomes: dict[str, Outcome], comparison: Comparison) -> None:
    """Write every answer beside its gold to answers.jsonl, and the figures to compare.json."""
    rows = (
        {"id": row.id, "question": row.question, "gold": list(row.answers)}
        | {name: outcome.answers.texts[i] for name, outcome in outcomes.items()}
        for i, row in enumerate(asked.rows)
    )
    key = stage_key(
        keys={name: outcome.answers.key for name, outcome in outcomes.items()}, metric=comparison.metric
    )
    _make_room(folder, key)
    write_rows(folder / "answers.jsonl", rows)
    write_json(folder / FIGURES, {"key": key} | comparison.as_json())


def _make_room(folder: Path, key: str) -> None:
    """Move a finished comparison of other inputs aside."""
    if not (folder / FIGURES).is_file():
        return
    old = json.loads((folder / FIGURES).read_bytes())["key"]
    if old == key:
        return
    aside = folder / f"earlier-{old[:8]}"
    aside.mkdir(exist_ok=True)
    for name in (FIGURES, "answers.jsonl", REPORT):
        if (folder / name).is_file():
            (folder / name).replace(aside / name)


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)

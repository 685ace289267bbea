"""Score the answers of `gag evaluate` by data set, and say the main figures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gag.errors import DataError
from gag.evaluation.intervals import Estimate, estimate
from gag.evaluation.labelled import AnsweredQuestion, LabelledQuestion
from gag.evaluation.scoring import Scorer
from gag.project.domain import TransferFacts
from gag.project.project import Project
from gag.project.settings import GENERAL


@dataclass(frozen=True)
class DatasetScore:
    """A data set's scores by metric, on the router's routes and the true ones (None: not all are known)."""

    questions: int
    routed: dict[str, Estimate]
    oracle: dict[str, Estimate] | None


@dataclass(frozen=True)
class Quantiles:
    """How some values are spread."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclass(frozen=True)
class Encoders:
    """The models behind two of the metrics."""

    bertscore: str
    similarity: str


@dataclass(frozen=True)
class EvaluationSummary:
    """What summary.json says of an evaluation."""

    questions: int
    without_gold: int  # rows without a gold answer, which are answered and not scored
    datasets: dict[str, DatasetScore]
    routing: float | None  # share of rows of known domain that are routed right
    tokens_added: float  # by the routed answers, on average
    support: Quantiles | None  # of the answers that vectors went into, in nats per token
    metrics: Encoders
    folder: str  # of its files, in the project
    transfer: dict[str, TransferFacts]  # as the builds of the domains that were asked measured it

    def as_json(self) -> dict[str, Any]:
        """Turn it into what summary.json holds; a data set without true routes has no `oracle`."""
        plain = asdict(self)
        for scores in plain["datasets"].values():
            if scores["oracle"] is None:
                del scores["oracle"]
        return plain


def scored(
    rows: Sequence[LabelledQuestion], answers: Sequence[AnsweredQuestion], scorer: Scorer, project: Project
) -> list[AnsweredQuestion]:
    """Score both routes of each row that has a gold answer, by the metrics of its data set."""
    found = [replace(answer, scores={}) for answer in answers]  # others judged what is taken over
    for metric in {metric for row in rows for metric in _metrics(row, project)}:
        places = [i for i, row in enumerate(rows) if row.answers and metric in _metrics(row, project)]
        for route in ("routed", "oracle"):
            texts = {i: text for i in places if (text := getattr(found[i], route)) is not None}
            values = scorer.score(metric, list(texts.values()), [rows[i].answers for i in texts])
            for i, value in zip(texts, values, strict=True):
                of_route = found[i].scores.get(route, {}) | {metric: value}
                found[i] = replace(found[i], scores=found[i].scores | {route: of_route})
    return found


def _metrics(row: LabelledQuestion, project: Project) -> Sequence[str]:
    return project.settings.evaluation.of(row.dataset, row.domain)


def summarise(
    rows: Sequence[LabelledQuestion],
    answers: Sequence[AnsweredQuestion],
    project: Project,
    folder: str,
    transfer: dict[str, TransferFacts],
) -> EvaluationSummary:
    """Sum scored answers up by data set; rows without a gold answer are counted and left out."""
    groups: dict[str, list[tuple[LabelledQuestion, AnsweredQuestion]]] = {}
    for row, answer in zip(rows, answers, strict=True):
        if row.answers:
            groups.setdefault(row.dataset, []).append((row, answer))
    if not groups:
        raise DataError('no row has a gold "answer": there is nothing to score')
    chosen = project.settings.evaluation
    support = [answer.support for answer in answers if answer.support is not None]
    return EvaluationSummary(
        questions=len(rows),
        without_gold=sum(not row.answers for row in rows),
        datasets={
            name: _dataset_score([answer for _, answer in members], _metrics(members[0][0], project))
            for name, members in groups.items()
        },
        routing=_routed_right(rows, answers, project),
        tokens_added=round(float(np.mean([answer.tokens_added for answer in answers])), 2),
        support=_quantiles(support) if support else None,
        metrics=Encoders(chosen.bertscore, chosen.similarity),
        folder=folder,
        transfer=transfer,
    )


def true_route(row: LabelledQuestion, project: Project) -> str | None:
    """Return the route that is right for a row: its domain if present, else general; None if not said."""
    if row.domain is None:
        return None
    return row.domain if row.domain in project.present() else GENERAL


def evaluation_lines(summary: EvaluationSummary) -> list[str]:
    """Say the main figures to a terminal."""
    header = f"{'data set':<22}{'questions':>10}  {'metric':<11}{'routed':>8}{'oracle':>8}"
    lines = [f"{header}   95 % interval, routed"]
    for name, scores in summary.datasets.items():
        lines += [_line(name, scores, metric) for metric in scores.routed]
    if summary.routing is not None:
        lines.append(f"routed right: {summary.routing:.4f}")
    if summary.without_gold:
        lines.append(f"{summary.without_gold} rows have no gold answer and are left out")
    lines += [f"transfer {name}: {facts.line}" for name, facts in summary.transfer.items()]
    if summary.support:
        spread = "  ".join(f"{name} {value:+.2f}" for name, value in asdict(summary.support).items())
        lines.append(f"how much likelier the vectors make an answer, log per token: {spread}")
    return lines


def _line(name: str, scores: DatasetScore, metric: str) -> str:
    routed = scores.routed[metric]
    oracle = f"{scores.oracle[metric].mean:>8.3f}" if scores.oracle else f"{'-':>8}"
    low, high = routed.interval
    return (
        f"{name:<22}{scores.questions:>10}  {metric:<11}{routed.mean:>8.3f}{oracle}   {low:.3f} to {high:.3f}"
    )


def _dataset_score(answers: list[AnsweredQuestion], metrics: Sequence[str]) -> DatasetScore:
    def estimates(route: str) -> dict[str, Estimate]:
        return {
            metric: estimate([answer.scores[route][metric] for answer in answers if route in answer.scores])
            for metric in metrics
        }

    whole = all("oracle" in answer.scores for answer in answers)
    return DatasetScore(len(answers), estimates("routed"), estimates("oracle") if whole else None)


def _routed_right(
    rows: Sequence[LabelledQuestion], answers: Sequence[AnsweredQuestion], project: Project
) -> float | None:
    right = [
        answer.route == true_route(row, project)
        for row, answer in zip(rows, answers, strict=True)
        if row.domain is not None
    ]
    return round(float(np.mean(right)), 4) if right else None


def _quantiles(values: list[float]) -> Quantiles:
    ends = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    return Quantiles(*(round(float(end), 3) for end in ends))

"""Score the answers of `gag evaluate` by data set, and say the main figures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


def summarise(
    rows: Sequence[LabelledQuestion],
    answers: Sequence[AnsweredQuestion],
    scorer: Scorer,
    project: Project,
    folder: str,
    transfer: dict[str, TransferFacts],
) -> EvaluationSummary:
    """Score both routes by data set; rows without a gold answer are counted and left out."""
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
            name: _dataset_score(members, chosen.of(name, members[0][0].domain), scorer)
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


def _dataset_score(
    members: list[tuple[LabelledQuestion, AnsweredQuestion]], metrics: Sequence[str], scorer: Scorer
) -> DatasetScore:
    golds = [row.answers for row, _ in members]

    def scores(texts: list[str]) -> dict[str, Estimate]:
        return {metric: estimate(scorer.score(metric, texts, golds)) for metric in metrics}

    oracle = [answer.oracle for _, answer in members if answer.oracle is not None]
    return DatasetScore(
        questions=len(members),
        routed=scores([answer.routed for _, answer in members]),
        oracle=scores(oracle) if len(oracle) == len(members) else None,
    )


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

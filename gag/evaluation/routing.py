"""Judge a router on questions whose domain is known: accuracy, confusion, abstention, latency."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gag.errors import DataError
from gag.evaluation.intervals import Interval, grouped_interval, interval
from gag.evaluation.labelled import LabelledQuestion
from gag.project.progress import say
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.bank import Bank
from gag.routing.building import SAMPLE, build_bank, encode_questions, sample_size
from gag.routing.calibration import Calibration
from gag.routing.query_encoder import QueryEncoder
from gag.routing.router import Router, Verdict

BINS = 15
UNKNOWN = "(no domain here)"
LATENCY_ROUNDS = {1: 60, 64: 12}  # by batch size
SAME = 1 - 1e-6  # cosine of two vectors of one question


@dataclass(frozen=True)
class Accuracy:
    """Shares of questions that are routed right."""

    total: float  # questions of no domain here belong to general
    micro: float  # of the domains that are present
    micro_interval: Interval
    macro: float  # mean over those domains
    macro_interval: Interval


@dataclass(frozen=True)
class DomainRouting:
    """How a domain's questions are routed; no precision where nothing is routed to it."""

    questions: int
    recall: float
    interval: Interval
    precision: float | None


@dataclass(frozen=True)
class Abstention:
    """What keeping doubts in general promises and costs; None where there are no such questions."""

    alpha: float | None
    promised_risk: float | None
    risk: float | None  # share of general questions that go to specialists
    coverage: float | None  # share of specialist questions that reach a specialist


@dataclass(frozen=True)
class OutOfDistribution:
    """What becomes of questions whose domain is not present."""

    questions: int
    to_general: float
    auroc: float | None  # of the distance from the likeliest domain, against the questions of present domains


@dataclass(frozen=True)
class Latency:
    """Milliseconds to route a batch, encoding included."""

    p50: float
    p99: float


@dataclass(frozen=True)
class NotCalibrated:
    """Why a router routes without a calibration."""

    warning: str


@dataclass(frozen=True)
class RoutingFigures:
    """What became of questions whose domain is known."""

    questions: int
    of_present_domains: int
    rule: str
    accuracy: Accuracy
    domains: dict[str, DomainRouting]
    confusion: dict[str, dict[str, int]]  # by true domain, then by route
    abstention: Abstention
    calibration_error: float | None
    out_of_distribution: dict[str, OutOfDistribution]  # by the domain that is left out
    latency_ms: dict[str, Latency]  # by batch size
    calibration: Calibration | NotCalibrated
    duplicates: dict[str, int]  # questions of their samples that two domains share


@dataclass(frozen=True)
class _Judged:
    """The questions' true domains and routes, as places in the router's names; -1: a domain not present."""

    truth: np.ndarray  # [B]
    chosen: np.ndarray  # [B]

    @property
    def right(self) -> np.ndarray:
        """Whether each goes where it belongs: one of no domain here to general [B]."""
        return self.chosen == np.where(self.truth < 0, 0, self.truth)

    @property
    def present(self) -> np.ndarray:
        """Whether each one's domain is present [B]."""
        return self.truth >= 0


def banks_of(
    rows: Sequence[LabelledQuestion], encoder: QueryEncoder, settings: RouterSettings
) -> dict[str, Bank]:
    """Make banks in memory from questions whose domain is known."""
    by_domain: dict[str, dict[str, str]] = {}
    for row in rows:
        by_domain.setdefault(str(row.domain), {}).setdefault(row.question, row.group or row.question)
    if GENERAL not in by_domain:
        named = ", ".join(map(repr, sorted(by_domain)))
        raise DataError(
            f"no row belongs to general (they belong to {named}); give some domain general, or map their "
            "labels under `labels` in gag.yaml"
        )
    return {
        name: build_bank(
            encode_questions(questions, encoder, settings, sample_size(name)), encoder.spec, settings
        )
        for name, questions in by_domain.items()
    }


def evaluate_routing(
    router: Router, rows: Sequence[LabelledQuestion], settings: RouterSettings
) -> RoutingFigures:
    """Route every row and compare with its domain; one whose domain is not present belongs to general."""
    questions, names = [row.question for row in rows], router.names
    vectors = router.encoder.encode(questions)  # [B, Dq]
    verdict = router.judge(vectors)
    truth = np.array([names.index(str(row.domain)) if row.domain in names else -1 for row in rows])
    judged = _Judged(truth, verdict.chosen.numpy())
    absent = Counter(str(row.domain) for row, place in zip(rows, truth, strict=True) if place < 0)
    if absent:
        counted = ", ".join(f"{name!r} ({count})" for name, count in absent.most_common())
        say(f"{absent.total()} of {len(rows)} rows are strangers: their domains are not here: {counted}")
    if not judged.present.any():
        raise DataError(
            f"no row belongs to a domain that is present ({', '.join(names)}); check their domains or labels"
        )
    return RoutingFigures(
        questions=len(rows),
        of_present_domains=int(judged.present.sum()),
        rule=router.rule,
        accuracy=_accuracy(judged),
        domains={name: _domain(judged, i) for i, name in enumerate(names) if (truth == i).any()},
        confusion=_confusion(judged, names),
        abstention=_abstention(judged, router.calibration),
        calibration_error=_calibration_error(verdict, judged) if router.calibration else None,
        out_of_distribution=_out_of_distribution(router, vectors, truth, verdict, settings),
        latency_ms={str(size): _latency(router, questions, size) for size in LATENCY_ROUNDS},
        calibration=router.calibration or NotCalibrated(router.state.warning),
        duplicates=duplicates(router),
    )


def duplicates(router: Router) -> dict[str, int]:
    """Count the questions that two domains' samples share: they can be routed right for one of them only."""
    found = {}
    samples = [bank.sample.vectors[:SAMPLE] for bank in router.banks]
    for i, later in enumerate(samples):
        for j, earlier in enumerate(samples[:i]):
            same = (later @ earlier.T > SAME).any(1).sum() if len(later) else 0
            if same:
                found[f"{router.names[j]} and {router.names[i]}"] = int(same)
    return found


def _accuracy(judged: _Judged) -> Accuracy:
    right, truth = judged.right, judged.truth
    present = right[judged.present]
    groups = [right[truth == i].tolist() for i in np.unique(truth[judged.present])]
    return Accuracy(
        total=_share(right),
        micro=_share(present),
        micro_interval=interval(present.tolist()),
        macro=round(float(np.mean([np.mean(group) for group in groups])), 4),
        macro_interval=grouped_interval(groups),
    )


def _domain(judged: _Judged, i: int) -> DomainRouting:
    own = judged.truth == i
    taken = (judged.chosen == i) & judged.present
    return DomainRouting(
        questions=int(own.sum()),
        recall=_share(judged.right[own]),
        interval=interval(judged.right[own].tolist()),
        precision=_share(own[taken]) if taken.any() else None,
    )


def _confusion(judged: _Judged, names: list[str]) -> dict[str, dict[str, int]]:
    """Count the questions by true domain and route; questions of no domain here stand last."""
    counts = Counter(zip(judged.truth.tolist(), judged.chosen.tolist(), strict=True))
    return {
        (names[i] if i >= 0 else UNKNOWN): {route: counts[i, j] for j, route in enumerate(names)}
        for i in sorted(set(judged.truth.tolist()), key=lambda i: (i < 0, i))
    }


def _abstention(judged: _Judged, calibration: Calibration | None) -> Abstention:
    to_specialist = judged.chosen > 0
    specialists, general = judged.truth > 0, judged.truth == 0
    return Abstention(
        alpha=calibration.alpha if calibration else None,
        promised_risk=calibration.promised if calibration else None,
        risk=_share(to_specialist[general]) if general.any() else None,
        coverage=_share(to_specialist[specialists]) if specialists.any() else None,
    )


def _calibration_error(verdict: Verdict, judged: _Judged) -> float:
    """Return the expected calibration error of the most likely domain's probability, in 15 equal bins."""
    best = verdict.scores[torch.from_numpy(judged.present)].softmax(1).max(1)
    sure, hit = best.values.numpy(), best.indices.numpy() == judged.truth[judged.present]
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    error = sum(
        abs(sure[bins == b].mean() - hit[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())
    )
    return round(float(error), 4)


def _out_of_distribution(
    router: Router, vectors: torch.Tensor, truth: np.ndarray, verdict: Verdict, settings: RouterSettings
) -> dict[str, OutOfDistribution]:
    """Judge questions that are out of distribution: of domains not here, and of each specialist left out."""
    found = {}
    if (truth < 0).any():
        found[UNKNOWN] = _told_apart(verdict, truth < 0, truth >= 0)
    if len(router.names) < 3 or not router.calibration:
        return found
    for i, name in enumerate(router.names):
        if name != GENERAL and (truth == i).any():
            without = _without(router, name, router.calibration.alpha, settings)
            found[name] = _told_apart(without.judge(vectors), truth == i, (truth >= 0) & (truth != i))
    return found


def _without(router: Router, name: str, alpha: float, settings: RouterSettings) -> Router:
    """Make the router again without one of its domains."""
    banks = {other: bank for other, bank in zip(router.names, router.banks, strict=True) if other != name}
    return Router(banks, router.encoder, settings.model_copy(update={"alpha": alpha}))


def _told_apart(verdict: Verdict, outside: np.ndarray, inside: np.ndarray) -> OutOfDistribution:
    """Say how well questions out of distribution [B] are told from those of present domains [B]."""
    from sklearn.metrics import roc_auc_score

    auroc = None
    if verdict.distances is not None and outside.any() and inside.any():
        both = outside | inside
        auroc = round(float(roc_auc_score(outside[both], verdict.distances.numpy()[both])), 4)
    to_general = _share(verdict.chosen.numpy()[outside] == 0)
    return OutOfDistribution(int(outside.sum()), to_general, auroc)


def _latency(router: Router, questions: list[str], size: int) -> Latency:
    """Time whole routes, encoding included, after two rounds of warm-up."""
    seconds = []
    for turn in range(LATENCY_ROUNDS[size] + 2):
        batch = [questions[(turn * size + i) % len(questions)] for i in range(size)]
        started = time.perf_counter()
        router.route(batch)
        seconds.append(time.perf_counter() - started)
    p50, p99 = np.quantile(seconds[2:], [0.5, 0.99]) * 1000
    return Latency(round(float(p50), 2), round(float(p99), 2))


def _share(values: np.ndarray) -> float:
    return round(float(np.mean(values)), 4)

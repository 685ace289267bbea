"""What the banks' own questions decide: the rule, each specialist's margin over general, and what is far."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gag.project.settings import RouterSettings
from gag.routing.bank import Bank
from gag.routing.doubts import doubts
from gag.routing.folds import Judged, judge
from gag.routing.margins import (
    ALPHAS,
    at_most,
    capped,
    margin_over_general,
    offsets,
    risk_and_coverage,
    threshold,
)
from gag.routing.rules import RULES
from gag.routing.temperatures import log_losses, not_worse, recall, summed, weigh

CANDIDATES = {  # by preference
    "blend": ("lda", "whitened"),
    "lda": ("lda",),
    "whitened": ("whitened",),
    "ppr": ("ppr",),
}
FAR_SHARE = 0.99  # of the specialists' questions lie nearer than some distance; beyond it ...
SURE_SHARE = 0.08  # of their median margin over general counts for nothing, as of many strangers, and ...
FAR_SLACK = 2.5  # times that distance no margin counts: only new wordings lie further out than the rest
POOLED = 20  # questions' worth of all domains' spread in each domain's own


@dataclass(frozen=True)
class Spread:
    """How far the domains' own questions lie from them, on average: what a distance is measured in."""

    outward: float  # Mahalanobis distance to the domain's mean, of all domains' questions
    across: dict[str, float]  # distance to the nearest whitened centre on the unit sphere, by domain
    near: float = 0.0  # nearer to where they go lie 99 % of the specialists' own
    sure: float = 0.0  # further out, margins over general count from this one on

    def distances(
        self, squared: torch.Tensor, cosine: torch.Tensor, places: torch.Tensor, names: Sequence[str]
    ) -> torch.Tensor:
        """Return how many times as far as its own questions from a domain questions lie [B].

        The mean of two ratios: of Mahalanobis distances, and of distances to the nearest centre.

        Args:
            squared: Mahalanobis distances to all means [B, N].
            cosine: to the nearest whitened centre of all domains [B, N].
            places: of the domain that each question is measured from [B].
            names: the domains.
        """
        outward, across = _distances(squared, cosine, places)
        own = torch.tensor([self.across[name] for name in names])[places]
        return (outward / self.outward + across / own) / 2

    @property
    def far(self) -> float:
        """Where no margin counts."""
        return FAR_SLACK * self.near

    def counted(self, distances: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
        """Return what margins over general count for: nothing far out if small, and very far out [B]."""
        nothing = (distances > self.near) & (margins < self.sure) | (distances > self.far)
        return torch.where(nothing, margins.clamp_max(0), margins)


@dataclass(frozen=True)
class Curve:
    """What other promises would give, as shares of the questions that were judged."""

    alpha: list[float]
    risk: list[float]  # of general questions: they go to specialists
    coverage: list[float]  # of a specialist's questions: they reach a specialist; mean over the specialists
    least: list[float]  # the same of the worst specialist


@dataclass(frozen=True)
class Calibration:
    """Decisions for one set of banks; another set is calibrated anew."""

    bank_set: str  # hash of the set of banks
    rule: str
    weights: dict[str, float]  # of the rules in the sum whose softmax over the domains is a probability
    losses: dict[str, float]  # log loss of each candidate, mean over the domains
    recalls: dict[str, float]  # share that it routes right, mean over the domains, before abstention
    questions: dict[str, int]  # judged, by domain
    priors: dict[str, float]  # by domain, 1 where not named: their logarithms are added to the scores
    alpha: float  # the share of general questions that may go to specialists
    max_abstention: float  # the share of a specialist's questions that may be given up for it
    margins: dict[str, float]  # by specialist: how far its score must lie above general's
    promised: float  # the smallest share, alpha or more, that these margins keep, with a confidence of 85 %
    beyond: int  # judged general questions above the margins
    coverage: dict[str, float]  # share of each specialist's judged questions that reach a specialist
    spread: Spread  # and what is out of distribution
    curve: Curve
    notes: list[str]  # what is wrong with the questions, as far as it shows


def restored(content: dict[str, Any]) -> Calibration:
    """Make the decisions of what `dataclasses.asdict` made of them.

    Raises:
        ValueError, TypeError, KeyError: it is no such thing, or no router can follow it.
    """
    spread, curve = Spread(**content["spread"]), Curve(**content["curve"])
    made = Calibration(**content | {"spread": spread, "curve": curve})
    numbers = (
        made.alpha,
        made.promised,
        *made.margins.values(),
        *made.weights.values(),
        *made.priors.values(),
        spread.outward,
        spread.near,
        spread.sure,
        *spread.across.values(),
    )
    if not made.weights.keys() <= RULES.keys() or not all(math.isfinite(number) for number in numbers):
        raise ValueError("it names an unknown rule, or a number that is not finite")
    return made


def set_hash(names: Sequence[str], banks: Sequence[Bank]) -> str:
    """Name a set of banks."""
    pairs = (f"{name} {bank.identity}\n" for name, bank in zip(names, banks, strict=True))
    return hashlib.sha256("".join(pairs).encode()).hexdigest()


def log_priors(names: Sequence[str], priors: dict[str, float]) -> torch.Tensor:
    """Return what the domains' scores gain by how often they are asked [N].

    Zeros where nothing is known of it.
    """
    return torch.tensor([math.log(priors.get(name, 1.0)) for name in names])


def calibrate(
    names: Sequence[str], banks: Sequence[Bank], total: torch.Tensor, settings: RouterSettings, alpha: float
) -> Calibration | None:
    """Decide from the banks' own questions, each judged by banks that have not seen it.

    None where no question of general, or none of any specialist, can be judged: a bank of one question, or of
    wordings of one question, leaves nothing to judge by.

    Args:
        names: the domains, general first.
        banks: in their order.
        total: the sum of their scatters (`rules.total_scatter`).
        settings: the rule, or `auto`: the first of CANDIDATES whose log loss, at its own best temperature, is
            not clearly above the least; priors; and how many questions may be given up.
        alpha: the share of general questions that may go to specialists.
    """
    judged = judge(banks, total)
    truth, gains = judged.truth, log_priors(names, settings.priors)
    if bool((truth > 0).all()) or bool((truth == 0).all()):
        return None
    candidates = {name: of for name, of in CANDIDATES.items() if settings.rule in ("auto", name)}
    weights = {name: weigh(judged.scores, of, truth) for name, of in candidates.items()}
    losses, recalls = {}, {}
    for name, chosen in weights.items():  # one sum at a time: with a thousand domains each is large
        alone = summed(judged.scores, chosen)
        losses[name], recalls[name] = log_losses(alone, truth), recall(alone, truth)
    least = min(losses.values(), key=lambda each: float(each.mean()))
    best = next(name for name, each in losses.items() if not_worse(each, least))
    alone = summed(judged.scores, weights[best])
    scores = alone + gains
    scored, doors = margin_over_general(scores)
    lifts = offsets(scored, doors, truth, len(names))
    odds = _unfitted_odds(scored, doors, truth, len(names))
    wished = _margins(odds, lifts, alpha)
    margins = capped(wished, scored, truth, settings.max_abstention)
    spread, distances = _spread(judged, names, scores.argmax(1), scored)
    counted = spread.counted(distances, scored)
    risk, coverage = risk_and_coverage(margins, counted, doors, truth)
    count = int((truth == 0).sum())
    beyond = round(risk * count)
    return Calibration(
        bank_set=set_hash(names, banks),
        rule=best,
        weights=weights[best],
        losses={name: round(float(each.mean()), 5) for name, each in losses.items()},
        recalls=recalls,
        questions=dict(zip(names, torch.bincount(truth, minlength=len(names)).tolist(), strict=True)),
        priors=settings.priors,
        alpha=alpha,
        max_abstention=settings.max_abstention,
        margins=dict(zip(names[1:], margins[1:].tolist(), strict=True)),
        promised=max(alpha, at_most(beyond if torch.any(margins < wished) else 0, count)),
        beyond=beyond,
        coverage=dict(zip(names[1:], coverage.tolist(), strict=True)),
        spread=spread,
        curve=_curve(sorted({*ALPHAS, alpha}), odds, lifts, counted, doors, truth),
        notes=doubts(names, alone, gains, truth),
    )


def _margins(odds: torch.Tensor, lifts: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return each specialist's margin [N], from one threshold for the odds at all doors."""
    return (threshold(odds, alpha) - lifts).clamp_min(0)


def _unfitted_odds(
    scored: torch.Tensor, doors: torch.Tensor, truth: torch.Tensor, count: int
) -> torch.Tensor:
    """Return the odds of general's questions [G], each by offsets that were fitted without it.

    Two halves serve each other (cross-conformal, Vovk 2015): a threshold over questions that the offsets were
    fitted to would promise too much.
    """
    general = truth == 0
    first = general & (general.cumsum(0) % 2 == 1)
    odds = torch.empty_like(scored)
    for asked in (first, general & ~first):
        lifts = offsets(scored[~asked], doors[~asked], truth[~asked], count)
        odds[asked] = (scored + lifts[doors])[asked]
    return odds[general]


def _curve(
    alphas: list[float],
    odds: torch.Tensor,
    lifts: torch.Tensor,
    scored: torch.Tensor,
    doors: torch.Tensor,
    truth: torch.Tensor,
) -> Curve:
    curve = Curve(alphas, [], [], [])
    for alpha in alphas:
        risk, coverage = risk_and_coverage(_margins(odds, lifts, alpha), scored, doors, truth)
        seen = coverage[torch.bincount(truth, minlength=len(lifts))[1:] > 0]
        curve.risk.append(round(risk, 5))
        curve.coverage.append(round(float(seen.mean()), 5))
        curve.least.append(round(float(seen.min()), 5))
    return curve


def _spread(
    judged: Judged, names: Sequence[str], chosen: torch.Tensor, scored: torch.Tensor
) -> tuple[Spread, torch.Tensor]:
    """Return how the domains' own questions lie about them, and how far each lies from where it goes [C]."""
    truth, cosines = judged.truth, judged.scores["whitened"]
    outward, across = _distances(judged.squared, cosines, truth)
    counts = torch.bincount(truth, minlength=len(names))
    sums = torch.zeros(len(names)).index_add_(0, truth, across) + POOLED * across.mean()
    own = (sums / (counts + POOLED)).clamp_min(1e-3).tolist()
    spread = Spread(max(1e-3, float(outward.mean())), dict(zip(names, own, strict=True)))
    distances, theirs = spread.distances(judged.squared, cosines, chosen, names), truth > 0
    near, sure = float(distances[theirs].quantile(FAR_SHARE)), SURE_SHARE * float(scored[theirs].median())
    return replace(spread, near=near, sure=max(0.0, sure)), distances


def _distances(
    squared: torch.Tensor, cosine: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances to a domain's mean and to its nearest centre, on the unit sphere [B]."""
    near = cosine.gather(1, places[:, None])[:, 0]
    return squared.gather(1, places[:, None])[:, 0].clamp_min(0).sqrt(), (2 - 2 * near).clamp_min(0).sqrt()

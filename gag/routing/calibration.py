"""What held-out vectors decide: the rule, the margin over general, and what is out of distribution."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gag.routing.bank import Bank
from gag.routing.rules import RULES, Query, Statistics

CANDIDATES = {  # by preference
    "blend": ("lda", "whitened"),
    "lda": ("lda",),
    "whitened": ("whitened",),
    "ppr": ("ppr",),
}
ENOUGH = 10  # held-out questions of each domain, below which nothing is decided by them
JUDGED = 10_000  # specialists' held-out questions that are looked at, ENOUGH of each domain at least
SUREST = 20.0  # log odds
FAR_SHARE = 0.99  # of the specialists' held-out questions lie nearer than some distance, and ...
FAR_SLACK = (
    3.0  # times that is out of distribution: new wordings lie further out than a domain's own questions
)
GRID_STEP, GRID_SIZE = 1.1, 150  # of the temperatures that are tried


@dataclass(frozen=True)
class Calibration:
    """Decisions for one set of banks; another set is calibrated anew."""

    bank_set: str  # hash of the set of banks
    rule: str
    alpha: float  # the share of general questions that may go to specialists
    reached: float  # the smallest share >= alpha that so many held-out general questions can promise
    weights: dict[
        str, float
    ]  # of the rules in the sum that is the score: its softmax over the domains is a probability
    margin: float  # by how much a specialist's score must lie above general's
    far: float  # distance to the nearest domain beyond which a question is out of distribution
    losses: dict[str, float]  # log loss of each candidate, mean over the domains
    recalls: dict[str, float]  # share that it routes right, mean over the domains, before abstention
    questions: dict[str, int]  # held out, by domain
    priors: dict[str, float]  # by domain, 1 where not named: their logarithms are added to the scores

    def check(self) -> None:
        """Refuse decisions that no router can follow, with a ValueError."""
        numbers = (
            self.alpha,
            self.reached,
            self.margin,
            self.far,
            *self.weights.values(),
            *self.priors.values(),
        )
        if not self.weights.keys() <= RULES.keys() or not all(math.isfinite(number) for number in numbers):
            raise ValueError("it names an unknown rule, or a number that is not finite")


def set_hash(names: Sequence[str], banks: Sequence[Bank]) -> str:
    """Name a set of banks."""
    pairs = (f"{name} {bank.identity}\n" for name, bank in zip(names, banks, strict=True))
    return hashlib.sha256("".join(pairs).encode()).hexdigest()


def log_priors(names: Sequence[str], priors: dict[str, float]) -> torch.Tensor:
    """Return what the domains' scores gain by how often they are asked [N].

    Zeros where nothing is known of it.
    """
    return torch.tensor([math.log(priors.get(name, 1.0)) for name in names])


def calibration_shortage(banks: Mapping[str, Bank]) -> str:
    """Say which bank holds too few questions out for calibration; nothing if all hold enough."""
    counts = {name: bank.held_out_count for name, bank in banks.items()}
    short = min(counts, key=lambda name: counts[name])
    enough = counts[short] >= ENOUGH
    return (
        "" if enough else f"{short} holds {counts[short]} questions out for calibration, {ENOUGH} are needed"
    )


def calibrate(
    names: Sequence[str], statistics: Statistics, alpha: float, rule: str | None, priors: dict[str, float]
) -> Calibration:
    """Decide from the held-out vectors of banks, ENOUGH of each (`calibration_shortage`).

    General is the first of them.

    Args:
        names: the domains, in the order of the banks.
        statistics: what the banks say together.
        alpha: the share of general questions that may go to specialists.
        rule: the rule, or None: the first of `CANDIDATES` whose log loss, at its own best temperature, is
            within one standard error of the least.
        priors: how often each domain is asked.
    """
    banks = statistics.banks
    parts = [banks[0].held_out, *_sampled(banks[1:])]
    truth = torch.arange(len(banks)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    query = Query(torch.cat(parts), statistics)
    candidates = {name: of for name, of in CANDIDATES.items() if rule in (None, name)}
    needed = {part for of in candidates.values() for part in of}
    raw = {part: RULES[part](statistics).scores(query) for part in RULES if part in needed}
    weights = {name: _weights(raw, of, truth) for name, of in candidates.items()}
    scores = {name: _summed(raw, chosen) for name, chosen in weights.items()}
    losses = {name: _losses(scores[name], truth) for name in candidates}
    least = min(losses.values(), key=lambda each: float(each.mean()))
    best = next(name for name, each in losses.items() if _not_worse(each, least))
    gains = log_priors(names, priors)
    margin, reached = _conformal_margin(_unfitted_margins(raw, candidates[best], truth, gains), alpha)
    return Calibration(
        bank_set=set_hash(names, banks),
        rule=best,
        alpha=alpha,
        reached=reached,
        weights=weights[best],
        margin=margin,
        far=FAR_SLACK * float(query.nearest[truth > 0].quantile(FAR_SHARE)),
        losses={name: round(float(each.mean()), 5) for name, each in losses.items()},
        recalls={name: _recall(scores[name], truth) for name in weights},
        questions={name: bank.held_out_count for name, bank in zip(names, banks, strict=True)},
        priors=priors,
    )


def margin_over_general(scores: torch.Tensor) -> torch.Tensor:
    """Return how far the best specialist lies above general, scores [B, N] -> [B]."""
    return scores[:, 1:].amax(1) - scores[:, 0]


def _unfitted_margins(
    raw: dict[str, torch.Tensor], parts: tuple[str, ...], truth: torch.Tensor, gains: torch.Tensor
) -> torch.Tensor:
    """Return the margins of general's questions [G], each by weights that were fitted without it.

    Two halves serve each other (cross-conformal, Vovk 2015): a threshold over margins of questions that the
    weights were fitted to would promise too much.
    """
    general = truth == 0
    first = general & (general.cumsum(0) % 2 == 1)
    margins = torch.empty(int(general.sum()))
    for asked in (first, general & ~first):
        left = {part: scores[~asked] for part, scores in raw.items() if part in parts}
        weights = _weights(left, parts, truth[~asked])
        held = {part: scores[asked] for part, scores in raw.items() if part in parts}
        margins[asked[general]] = margin_over_general(_summed(held, weights) + gains)
    return margins


def _sampled(banks: Sequence[Bank]) -> list[torch.Tensor]:
    """Take specialists' held-out vectors, evenly from each where they are many."""
    most = max(ENOUGH, JUDGED // max(1, len(banks)))
    return [bank.held_out[:: -(-bank.held_out_count // most)].clone() for bank in banks]


def _summed(raw: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    return torch.stack([raw[part] * weight for part, weight in weights.items()]).sum(0)


def _weights(raw: dict[str, torch.Tensor], parts: tuple[str, ...], truth: torch.Tensor) -> dict[str, float]:
    """Weigh each part by its own temperature, and the sum by one more."""
    single = {part: 1 / _temperature(raw[part], truth) for part in parts}
    whole = _temperature(_summed(raw, single), truth)
    return {part: weight / whole for part, weight in single.items()}


def _temperature(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the temperature, of a geometric grid, at which scores [C, N] have the least log loss.

    It is never so low that the middle question is surer than SUREST, however far apart the domains lie. The
    loss is convex in the inverse temperature, so it has one valley along the grid, and its place is found by
    bisection.
    """
    best = scores.topk(2, dim=1).values
    lowest = float((best[:, 0] - best[:, 1]).median()) / SUREST or 1.0

    def loss(i: int) -> float:
        return float(_losses(scores / (lowest * GRID_STEP**i), truth).mean())

    low, high = 0, GRID_SIZE - 1
    while low < high:
        middle = (low + high) // 2
        if loss(middle) <= loss(middle + 1):
            high = middle
        else:
            low = middle + 1
    return lowest * GRID_STEP**low


def _losses(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return each question's log loss [C], weighted so that every domain counts alike."""
    losses = torch.nn.functional.cross_entropy(scores, truth, reduction="none")
    sizes = torch.bincount(truth)
    return losses * (len(truth) / len(sizes)) / sizes[truth]


def _not_worse(losses: torch.Tensor, least: torch.Tensor) -> bool:
    """Say whether losses [C] exceed the least by no more than a standard error of the difference."""
    more = losses - least
    return float(more.mean()) <= float(more.std()) / math.sqrt(len(more))


def _recall(scores: torch.Tensor, truth: torch.Tensor) -> float:
    right = (scores.argmax(1) == truth).double()
    sizes = torch.bincount(truth)
    return round(float((torch.zeros(len(sizes)).double().index_add_(0, truth, right) / sizes).mean()), 4)


def _conformal_margin(margins: torch.Tensor, alpha: float) -> tuple[float, float]:
    """Split conformal: of exchangeable general questions at most a share of `alpha` has a larger one.

    Returns:
        The margin, and the share that so many questions can promise: `alpha`, or more where they are few.
    """
    count = len(margins)
    place = math.ceil((count + 1) * (1 - alpha))
    reached = alpha if place <= count else 1 / (count + 1)
    return max(0.0, float(margins.sort().values[min(place, count) - 1])), reached

"""How far each specialist must lie above general so that few general questions come through its door.

A question's margin is its best specialist's score less general's; that specialist is its door. Questions at
a door are judged by their odds: their margin, and the door's own offset.
"""

import math

import torch

TAIL, MOST_TAIL = (
    10,
    0.2,
)  # the excesses of so many times alpha of the questions give the tail, of a fifth at most
STEADY = 10  # questions beyond a threshold with which it hangs on no single one
CONFIDENT, LEAST = (
    1.2816,
    0.25,
)  # deviations for a confidence of 90 %; share of alpha that is aimed at, at least
DOOR = 0.5  # log odds by which doors' offsets differ, as a rule
ROUNDS = 30  # of Newton's method
ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of the curve


def margin_over_general(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far the best specialist lies above general [B], and its place among all domains [B]."""
    best = scores[:, 1:].max(1)
    return best.values - scores[:, 0], best.indices + 1


def offsets(margins: torch.Tensor, doors: torch.Tensor, truth: torch.Tensor, count: int) -> torch.Tensor:
    """Fit by how much the log odds of being the specialist's exceed the margin at each door [N].

    The odds are of densities: every domain weighs alike, however many questions it has. It is a logistic
    regression with slope one for each door, drawn to the doors' common offset by a normal prior of deviation
    DOOR, so that a door of few questions has the common one.

    Args:
        margins: of questions [C].
        doors: places of their best specialists [C].
        truth: places of the domains that they are of, general's 0 [C].
        count: N, domains with general; general's own offset is 0.
    """
    sizes = torch.bincount(truth, minlength=count).clamp_min(1)
    weights = sizes.clamp_max(int(sizes[0]))[doors] / sizes[truth]  # at a door: of general as of its own
    common = _newton(margins, torch.zeros_like(doors), truth, weights, 1, 0.0, 0.01)
    found = _newton(margins, doors, truth, weights, count, float(common), 1 / DOOR**2)
    found[0] = 0.0
    return found


def _newton(
    margins: torch.Tensor,
    doors: torch.Tensor,
    truth: torch.Tensor,
    weights: torch.Tensor,
    count: int,
    centre: float,
    precision: float,
) -> torch.Tensor:
    """Maximise the posterior of each door's offset [count]."""
    found = torch.full((count,), centre)
    wanted = (truth > 0).to(margins.dtype)
    for _ in range(ROUNDS):
        chance = (margins + found[doors]).sigmoid()
        slope = precision * (found - centre)
        slope.index_add_(0, doors, weights * (chance - wanted))
        bend = torch.full((count,), precision).index_add_(0, doors, weights * chance * (1 - chance))
        found -= (slope / bend).clamp(-1, 1)
    return found


def careful(alpha: float, count: int) -> float:
    """Return the share to aim at so that `count` questions promise `alpha` with a confidence of 90 %.

    Half of all samples would show less than the share that is aimed at (Vovk 2012, on training-conditional
    validity).
    """
    return max(LEAST * alpha, alpha - CONFIDENT * math.sqrt(alpha * (1 - alpha) / count))


def tail_threshold(odds: torch.Tensor, alpha: float) -> float:
    """Return what a share of `alpha` of such values exceed, by an exponential tail (peaks over a threshold).

    Many excesses in place of one order statistic: Pickands (1975), with shape zero.
    """
    count = len(odds)
    over = max(math.ceil(min(TAIL * alpha, max(MOST_TAIL, alpha)) * count), min(STEADY, count // 2), 1)
    ordered = odds.sort(descending=True).values
    start = float(ordered[min(over, count - 1)])
    scale = float((ordered[:over] - start).mean())
    return start + scale * max(0.0, math.log(over / (count * alpha)))


def capped(
    margins: torch.Tensor, scored: torch.Tensor, doors: torch.Tensor, truth: torch.Tensor, share: float
) -> torch.Tensor:
    """Lower thresholds [N] that keep more than a share of a domain's own questions from its door.

    Args:
        margins: the thresholds [N].
        scored: questions' margins [C].
        doors: and doors [C].
        truth: their domains' places [C].
        share: of a domain's questions that may be given up.
    """
    found = margins.clone()
    own = truth == doors
    for place in range(1, len(margins)):
        allowed = int(share * int((truth == place).sum()))
        above = scored[own & (truth == place) & (scored > 0)].sort().values
        if len(above) > allowed:
            found[place] = min(float(found[place]), float(above[allowed]) * (1 - 1e-4))
    return found


def risk_and_coverage(
    margins: torch.Tensor, scored: torch.Tensor, doors: torch.Tensor, truth: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Return the share of general questions that come through a door, and of each specialist's [N - 1]."""
    through = (scored > margins[doors]).double()
    shares = torch.zeros(len(margins), dtype=torch.float64).index_add_(0, truth, through)
    shares /= torch.bincount(truth, minlength=len(margins)).clamp_min(1)
    return float(shares[0]), shares[1:]

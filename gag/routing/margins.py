"""How far each specialist must lie above general so that few general questions come through its door.

A question's margin is its best specialist's score less general's; that specialist is its door. Questions at
a door are judged by their odds: their margin, and the door's own offset.
"""

import math
from dataclasses import dataclass

import torch

TAIL, LEAST_TAIL = 0.2, 10  # share of values whose excesses give a tail, and so many at least
STEADY = 10  # questions beyond a threshold with which it hangs on no single one
CONFIDENT = 1.0364  # deviations for a confidence of 85 %
DOOR = 0.15  # log odds by which doors' offsets differ, as a rule
ROUNDS = 30  # of Newton's method
ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of the curve


def margin_over_general(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far the best specialist lies above general [B], and its place among all domains [B]."""
    best = scores[:, 1:].max(1)
    return best.values - scores[:, 0], best.indices + 1


def offsets(margins: torch.Tensor, doors: torch.Tensor, truth: torch.Tensor, count: int) -> torch.Tensor:
    """Fit by how much more a margin says for the specialist at each door than at all doors together [N].

    The log odds of being the specialist's are a margin and an offset. The odds are of densities: every domain
    weighs alike, however many questions it has. It is a logistic regression with slope one for each door,
    drawn to the doors' common offset by a normal prior of deviation DOOR, so that a door of few questions has
    that one.

    Args:
        margins: of questions [C].
        doors: places of their best specialists [C].
        truth: places of the domains that they are of, general's 0 [C].
        count: N, domains with general; general's own is 0.
    """
    sizes = torch.bincount(truth, minlength=count).clamp_min(1)
    weights = sizes.clamp_max(int(sizes[0]))[doors] / sizes[truth]  # at a door: of general as of its own
    common = _newton(margins, torch.zeros_like(doors), truth, weights, 1, 0.0, 0.01)
    found = _newton(margins, doors, truth, weights, count, float(common), 1 / DOOR**2)
    found -= common
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


@dataclass(frozen=True)
class Tail:
    """The upper end of values as an exponential: peaks over a threshold (Pickands 1975), with shape zero.

    Many excesses stand in place of the two or three largest values.
    """

    share: float  # of the values that lie above `start`
    start: float
    scale: float  # mean excess over it
    count: int  # of the excesses

    def exceeding(self, value: float) -> float:
        """Return the share of values that exceed one, which lies in the tail."""
        return self.share * math.exp((self.start - value) / self.scale) if self.scale else 0.0

    def exceeded_by(self, share: float) -> float:
        """Return the value that a share of the values, no larger than the tail's, exceeds."""
        return self.start + self.scale * math.log(self.share / share)

    def careful(self, share: float) -> float:
        """Return the share to aim at, so that no more than `share` exceed with a confidence of 85 %.

        The deviation of the logarithm comes from those of the tail's start and of its scale, the more the
        further out the share lies.
        """
        aim = share
        for _ in range(4):  # each changes it less
            spread = (1 - self.share + math.log(self.share / aim) ** 2) / self.count
            aim = share * math.exp(-CONFIDENT * math.sqrt(spread))
        return aim


def tail_of(values: torch.Tensor) -> tuple[Tail, torch.Tensor]:
    """Fit the upper tail of values [C]; return it and the values, the largest first."""
    count = len(values)
    over = max(math.ceil(TAIL * count), min(LEAST_TAIL, count // 2), 1)
    ordered = values.sort(descending=True).values
    start = float(ordered[min(over, count - 1)])
    return Tail(over / count, start, float((ordered[:over] - start).mean()), over), ordered


def threshold(odds: torch.Tensor, alpha: float) -> float:
    """Return what no more than a share of `alpha` of such values exceed, with a confidence of 85 %.

    A share that is larger than the tail is read from the values themselves.
    """
    tail, ordered = tail_of(odds)
    if alpha < tail.share:
        return tail.exceeded_by(tail.careful(alpha))
    return float(ordered[min(int(alpha * len(odds)), len(odds) - 1)])


def capped(margins: torch.Tensor, scored: torch.Tensor, truth: torch.Tensor, share: float) -> torch.Tensor:
    """Lower thresholds [N] that keep more than a share of a domain's own questions from every door.

    Questions that lie below general anyway are no part of the share. Where the share ends is taken from the
    lower tail of the domain's margins, as the thresholds from the upper one of general's.

    Args:
        margins: the thresholds [N].
        scored: questions' margins [C].
        truth: their domains' places [C].
        share: of a domain's questions that may be given up.
    """
    found = margins.clone()
    for place in (place for place in range(1, len(margins)) if bool((truth == place).any())):
        tail, ordered = tail_of(-scored[truth == place])
        below = tail.exceeding(0.0) if tail.start < 0 else float((ordered > 0).double().mean())
        wanted = below + share
        if wanted < tail.share:
            most = -tail.exceeded_by(wanted)
        else:
            most = -float(ordered[min(int(wanted * len(ordered)), len(ordered) - 1)])
        found[place] = min(float(found[place]), max(0.0, most))
    return found


def at_most(beyond: int, count: int) -> float:
    """Return the share that `beyond` of `count` questions speak for at most, with a confidence of 85 %.

    Wilson's upper limit.
    """
    square, share = CONFIDENT**2 / count, beyond / count
    return (share + square / 2 + math.sqrt(share * (1 - share) * square + square**2 / 4)) / (1 + square)


def risk_and_coverage(
    margins: torch.Tensor, scored: torch.Tensor, doors: torch.Tensor, truth: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Return the share of general questions that come through a door, and of each specialist's [N - 1]."""
    through = (scored > margins[doors]).double()
    shares = torch.zeros(len(margins), dtype=torch.float64).index_add_(0, truth, through)
    shares /= torch.bincount(truth, minlength=len(margins)).clamp_min(1)
    return float(shares[0]), shares[1:]

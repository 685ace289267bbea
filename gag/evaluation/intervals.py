"""How sure a mean is: bootstrap intervals, alone and paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ROUNDS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval."""

    mean: float
    interval: Interval


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of values with its interval."""
    return Estimate(round(float(np.mean(values)), 4), interval(values, seed))


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the 95 % percentile interval of the mean of values, by bootstrap."""
    return _ends(_means(values, seed))


def grouped_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Return the 95 % interval of the mean of the groups' means; each group is drawn from alone."""
    means = [_means(g, seed + i) for i, g in enumerate(groups) if len(g)]
    return _ends(np.mean(means, axis=0))


def paired(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """Estimate by how much one method leads another on the same questions.

    Where the interval holds 0, no difference is shown.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    return estimate(differences.tolist(), seed)


def _means(values: Sequence[float], seed: int) -> np.ndarray:
    """Draw as many values again and again -> the mean of each round."""
    numbers, random = np.asarray(values, dtype=float), np.random.default_rng(seed)
    return np.array([numbers[random.integers(0, len(numbers), len(numbers))].mean() for _ in range(ROUNDS)])


def _ends(means: np.ndarray) -> Interval:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(round(float(low), 4), round(float(high), 4))

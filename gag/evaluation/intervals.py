"""How sure a mean is: bootstrap intervals, alone and paired."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 2000
LEVEL = 0.95


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of values, by bootstrap."""
    return _ends(_means(values, seed))


def grouped_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the groups' means; each group is drawn from alone."""
    means = [_means(g, seed + i) for i, g in enumerate(groups) if len(g)]
    return _ends(np.mean(means, axis=0))


def paired(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Compare two ways on the same questions: mean difference, and its 95 % interval (0 inside: no difference is shown)."""
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    return float(differences.mean()), interval(differences.tolist(), seed)


def _means(values: Sequence[float], seed: int) -> np.ndarray:
    """Draw as many values again and again -> the mean of each round."""
    numbers, random = np.asarray(values, dtype=float), np.random.default_rng(seed)
    return np.array([numbers[random.integers(0, len(numbers), len(numbers))].mean() for _ in range(ROUNDS)])


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)

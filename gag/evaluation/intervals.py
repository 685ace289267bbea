"""How sure a mean is: bootstrap intervals, alone and paired."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 2000
LEVEL = 0.95


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of values, by bootstrap."""
    drawn = _drawn(len(values), seed)
    return _ends(np.asarray(values, dtype=float)[drawn].mean(1))


def grouped_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the groups' means; each group is drawn from alone."""
    means = [np.asarray(g, dtype=float)[_drawn(len(g), seed + i)].mean(1) for i, g in enumerate(groups) if len(g)]
    return _ends(np.mean(means, axis=0))


def paired(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Compare two ways on the same questions: mean difference, and its 95 % interval (0 inside: no difference is shown)."""
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    return float(differences.mean()), interval(differences.tolist(), seed)


def _drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (ROUNDS, count))


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)

"""Weigh rules by their temperatures, so that the softmax of their sum is a probability; and its log loss."""

import math

import torch

SUREST = 20.0  # log odds
CLEAR = 3  # standard errors: a few questions that are missed with certainty make up most of a log loss
GRID_STEP, GRID_SIZE = 1.02, 720  # of the temperatures that are tried


def summed(scores: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    """Return the weighted sum of rules' scores [B, N]."""
    total = torch.zeros(())
    for rule, weight in weights.items():
        total = torch.add(total, scores[rule], alpha=weight)
    return total


def weigh(scores: dict[str, torch.Tensor], rules: tuple[str, ...], truth: torch.Tensor) -> dict[str, float]:
    """Weigh each rule by its own temperature, and the sum by one more.

    Args:
        scores: by rule [C, N].
        rules: those in the sum.
        truth: places of the domains that the questions are of [C].
    """
    single = {rule: 1 / temperature(scores[rule], truth) for rule in rules}
    whole = temperature(summed(scores, single), truth)
    return {rule: weight / whole for rule, weight in single.items()}


def temperature(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the temperature, of a geometric grid, at which scores [C, N] have the least log loss.

    It is never so low that the middle question is surer than SUREST, however far apart the domains lie. The
    loss is convex in the inverse temperature, so it has one valley along the grid, and its place is found by
    bisection.
    """
    best = scores.topk(2, dim=1).values
    lowest = float((best[:, 0] - best[:, 1]).median()) / SUREST or 1.0

    def loss(i: int) -> float:
        return float(log_losses(scores / (lowest * GRID_STEP**i), truth).mean())

    low, high = 0, GRID_SIZE - 1
    while low < high:
        middle = (low + high) // 2
        if loss(middle) <= loss(middle + 1):
            high = middle
        else:
            low = middle + 1
    return lowest * GRID_STEP**low


def log_losses(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return each question's log loss [C], weighted so that every domain counts alike."""
    losses = torch.nn.functional.cross_entropy(scores, truth, reduction="none")
    sizes = torch.bincount(truth)
    return losses * (len(truth) / int((sizes > 0).sum())) / sizes[truth]


def not_worse(losses: torch.Tensor, least: torch.Tensor) -> bool:
    """Say whether losses [C] exceed the least by no more than CLEAR standard errors of the difference."""
    more = losses - least
    return float(more.mean()) <= CLEAR * float(more.std()) / math.sqrt(len(more))


def recall(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the share of questions that scores [C, N] route right, mean over the domains."""
    right = (scores.argmax(1) == truth).double()
    sizes = torch.bincount(truth)
    shares = torch.zeros(len(sizes)).double().index_add_(0, truth, right) / sizes
    return round(float(shares[sizes > 0].mean()), 4)

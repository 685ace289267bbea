"""Judge banks by their own questions, each as if no bank had ever seen it: cross-validation in closed form.

What a rule knows of a domain are sums over its questions, so a fold is taken out of all banks by subtraction:
from counts and means, from the scatter, and from the clusters whose directions the centres are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gag.routing.bank import Bank, Prototypes, Sample, packed
from gag.routing.building import FOLDS
from gag.routing.rules import GRID, RULES, Query, Statistics, covariance_root

JUDGED, EACH = 10_000, 50  # specialists' questions that are looked at, evenly; so many of each at least
TOGETHER = 4096  # vectors that are multiplied at once


@dataclass(frozen=True)
class Judged:
    """Questions of all banks, scored by banks that have not seen them."""

    truth: torch.Tensor  # [C], place of each one's bank
    places: torch.Tensor  # [C], in its bank's sample
    scores: dict[str, torch.Tensor]  # by rule [C, N]
    squared: torch.Tensor  # [C, N], Mahalanobis distances to the means


def judge(banks: Sequence[Bank], total: torch.Tensor) -> Judged:
    """Score each fold of the banks' samples by all banks without that fold.

    Args:
        banks: general's first; each is read once.
        total: the sum of their scatters (`rules.total_scatter`).

    Returns:
        The scores of general's whole sample, and of the specialists' as far as JUDGED and EACH say. A domain
        of which nothing would be left is not judged by that fold.
    """
    most = max(EACH, JUDGED // max(1, len(banks) - 1))
    whole = [Prototypes(bank.centres, bank.sizes, bank.mean, bank.count, bank.encoder) for bank in banks]
    left = [list(whole) for _ in range(FOLDS)]
    width = banks[0].encoder.width
    gone = [_Outer(width) for _ in range(FOLDS)]
    asked: list[list[torch.Tensor]] = [[] for _ in range(FOLDS)]
    rows: list[list[tuple[int, int]]] = [[] for _ in range(FOLDS)]
    for number, bank in enumerate(banks):
        sample, lengths = bank.sample, bank.lengths
        step = max(1, -(-len(sample) // most)) if number else 1
        for fold in range(FOLDS):
            places = (sample.folds == fold).nonzero()[:, 0]
            if 0 < len(places) < bank.count:
                out = sample.taken(places)
                left[fold][number] = _without(whole[number], lengths, out)
                gone[fold].add(out.vectors)
                asked[fold].append(out.vectors[::step])
                rows[fold] += [(number, place) for place in places[::step].tolist()]
    truth, places = torch.tensor([row for fold in rows for row in fold], dtype=torch.long).view(-1, 2).T
    order = truth.argsort(stable=True)
    ranks = list(order.argsort().split([len(fold) for fold in rows]))  # where each fold's questions end up
    scores = {name: torch.empty(len(truth), len(banks)) for name in RULES}
    squared, before = torch.empty(len(truth), len(banks)), _products(whole)
    for fold in (fold for fold in range(FOLDS) if rows[fold]):
        change = packed(gone[fold].sum() - before + _products(left[fold]))
        statistics = Statistics(left[fold], covariance_root(total - (change * GRID).round(), left[fold]))
        query = Query(torch.cat(asked[fold]), statistics)
        squared[ranks[fold]] = query.squared
        for name, rule in RULES.items():
            scores[name][ranks[fold]] = rule(statistics).scores(query)
        left[fold], asked[fold] = [], []  # a thousand domains' centres
    return Judged(truth[order], places[order], scores, squared)


class _Outer:
    """A sum of outer products, thousands of vectors at a time."""

    def __init__(self, width: int):
        self._total = torch.zeros(width, width, dtype=torch.float64)
        self._waiting: list[torch.Tensor] = []

    def add(self, vectors: torch.Tensor) -> None:
        """Add the products of vectors [B, D] with themselves."""
        self._waiting.append(vectors)
        if sum(map(len, self._waiting)) >= TOGETHER:
            self.sum()

    def sum(self) -> torch.Tensor:
        """Return the sum [D, D]."""
        if self._waiting:
            vectors, self._waiting = torch.cat(self._waiting), []
            self._total += vectors.T @ vectors
        return self._total


def _without(bank: Prototypes, lengths: torch.Tensor, out: Sample) -> Prototypes:
    """Take questions of a sample, not all of the bank's, out of its sums."""
    count = bank.count - len(out)
    sums = bank.centres * (lengths * bank.sizes)[:, None]  # [P, Dq]
    sums.index_add_(0, out.clusters, out.vectors, alpha=-1)
    sizes = bank.sizes - torch.bincount(out.clusters, minlength=len(sums))
    kept = sizes > 0.5  # some clusters were these questions alone
    mean = (bank.mean * bank.count - out.vectors.sum(0)) / count
    return Prototypes(
        torch.nn.functional.normalize(sums[kept], dim=-1), sizes[kept], mean, count, bank.encoder
    )


def _products(banks: Sequence[Prototypes]) -> torch.Tensor:
    """Sum the outer products of means, as often as each mean has questions [Dq, Dq]."""
    means = torch.stack([bank.mean for bank in banks]).double()
    counts = torch.tensor([float(bank.count) for bank in banks], dtype=torch.float64)
    return (means * counts[:, None]).T @ means

"""Rules of the router: each turns query vectors into a score per domain, from statistics alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from gag.routing.bank import Bank, MemoryBank, Prototypes, StoredBank, packed, unpacked

CHUNK = 512  # centres multiplied at once: the product stays in a core's cache
WHITENED = 2048  # centres whitened at once
ASKED = 512  # questions scored at once: their cosines to a thousand domains' centres are 64 MB
GRID = (
    2.0**28
)  # scatters are summed in these units, as whole numbers: exact in any order for up to 2^24 questions


@dataclass(frozen=True)
class Statistics:
    """What all banks say together: their means, and how questions scatter about their own mean."""

    banks: Sequence[Prototypes | StoredBank]
    root: torch.Tensor | None = None  # `covariance_root`; the published rule needs none

    @cached_property
    def means(self) -> torch.Tensor:
        """The domains' means [N, Dq]."""
        return torch.stack([bank.mean for bank in self.banks])

    @cached_property
    def middle(self) -> torch.Tensor:
        """The mean of the domains' means [Dq]."""
        return self.means.mean(0)

    @cached_property
    def whitened_means(self) -> torch.Tensor:
        """The domains' means where the scatter within the domains is a sphere [N, Dq]."""
        return self.whiten(self.means)

    @cached_property
    def squares(self) -> torch.Tensor:
        """Their squared lengths [N]."""
        return self.whitened_means.square().sum(1)

    @cached_property
    def uncertainties(self) -> torch.Tensor:
        """What a mean of so few questions adds to a squared distance from it, on average [N]."""
        return self.means.shape[1] / torch.tensor([float(bank.count) for bank in self.banks])

    def whiten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Turn vectors [B, Dq], seen from the domains' middle, so that questions scatter as a sphere."""
        if self.root is None:
            raise ValueError("statistics without the root of a covariance serve the published rule alone")
        return torch.linalg.solve_triangular(self.root.T, vectors - self.middle, upper=True, left=False)


def total_scatter(banks: Sequence[Bank], start: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the scatters of banks, in units of 1 / GRID, onto a sum of others: [Dq (Dq + 1) / 2] in float64.

    Whole numbers below 2^53 add up exactly in any order, so a domain that comes or goes leaves no trace.
    """
    width = banks[0].encoder.width if banks else 0
    total = torch.zeros(width * (width + 1) // 2, dtype=torch.float64) if start is None else start.clone()
    for bank in banks:
        triangle = packed(bank.scatter) if isinstance(bank, MemoryBank) else bank.packed_scatter
        total += (triangle.double() * GRID).round_()
    return total


def covariance_root(total: torch.Tensor, banks: Sequence[Prototypes | StoredBank]) -> torch.Tensor:
    """Return the lower Cholesky factor [Dq, Dq] of the shrunk covariance that a sum of scatters is of."""
    count = max(1, sum(bank.count - 1 for bank in banks))
    covariance = unpacked(total / (GRID * count), banks[0].encoder.width)
    return torch.linalg.cholesky(shrink(covariance, count)).float()


def shrink(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """Mix a covariance [D, D] of `count` vectors with a sphere, by the OAS estimate from its traces.

    Chen, Wiesel, Eldar and Hero (2010), Shrinkage Algorithms for MMSE Covariance Estimation.
    """
    width = len(covariance)
    trace, squares = covariance.trace(), covariance.square().sum()
    above = (1 - 2 / width) * squares + trace.square()
    below = (count + 1 - 2 / width) * (squares - trace.square() / width)
    share = float((above / below).clamp(0, 1)) if below > 0 else 1.0
    level = max(float(trace) / width, 1e-6)  # unit vectors: 1e-6 is no scatter at all
    return (1 - share) * covariance + share * level * torch.eye(width, dtype=covariance.dtype)


@dataclass(frozen=True)
class Query:
    """A batch of encoded questions, and what several rules ask of them, worked out once."""

    vectors: torch.Tensor  # [B, Dq], unit length
    statistics: Statistics

    @cached_property
    def whitened(self) -> torch.Tensor:
        """The vectors where the scatter within the domains is a sphere [B, Dq]."""
        return self.statistics.whiten(self.vectors)

    @cached_property
    def squared(self) -> torch.Tensor:
        """Squared Mahalanobis distances to the domains' means [B, N].

        Less what the means' own uncertainty adds: a domain of thirty questions is not further off for it.
        """
        products = (self.statistics.whitened_means @ self.whitened.T).T
        lengths = self.statistics.squares - self.statistics.uncertainties
        return self.whitened.square().sum(1, keepdim=True) + lengths - 2 * products


class Rule(Protocol):
    """Scores for the domains of the banks that the rule was made from, in their order."""

    def scores(self, query: Query) -> torch.Tensor:
        """Score a batch for N domains -> [B, N]; higher is nearer."""
        ...


class _Centres:
    """The prototypes of all domains, one under the other, those of domains with equally many together."""

    def __init__(
        self,
        banks: Sequence[Prototypes | StoredBank],
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        order = sorted(range(len(banks)), key=lambda i: banks[i].centre_count)
        self._groups = Counter(banks[i].centre_count for i in order)  # domains by number of prototypes
        self._places = torch.tensor(order).argsort()
        count, width = sum(bank.centre_count for bank in banks), banks[0].encoder.width
        self._stacked, start = torch.empty(count, width), 0  # [sum of P, Dq]
        for centres in _gathered([banks[i] for i in order], WHITENED):
            end = start + len(centres)
            self._stacked[start:end] = transform(centres) if transform else centres
            start = end

    def best(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the best cosine of each domain: [B, Dq] -> [B, N].

        Exact, a few centres in the cache at a time.
        """
        if len(vectors) > ASKED:
            return torch.cat([self.best(some) for some in vectors.split(ASKED)])
        cosines, asked = vectors.new_empty(len(self._stacked), len(vectors)), vectors.T.contiguous()
        for start in range(0, len(self._stacked), CHUNK):
            torch.mm(self._stacked[start : start + CHUNK], asked, out=cosines[start : start + CHUNK])
        shapes = [(count, size, len(vectors)) for size, count in self._groups.items()]
        groups = cosines.split([count * size for count, size, _ in shapes])
        best = [group.view(shape).amax(1) for group, shape in zip(groups, shapes, strict=True)]
        return torch.cat(best)[self._places].T


def _gathered(banks: Sequence[Prototypes | StoredBank], count: int) -> Iterator[torch.Tensor]:
    """Yield the banks' centres, some banks at a time."""
    waiting: list[torch.Tensor] = []
    for bank in banks:
        waiting.append(bank.centres)
        if sum(map(len, waiting)) >= count:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


class Ppr:
    """The published rule: the cosine to a domain's nearest prototype."""

    def __init__(self, statistics: Statistics):
        self._centres = _Centres(statistics.banks)

    def scores(self, query: Query) -> torch.Tensor:
        """Return the best cosine of each domain's prototypes."""
        return self._centres.best(query.vectors)


class Whitened:
    """The nearest prototype by cosine where the scatter within the domains is a sphere."""

    def __init__(self, statistics: Statistics):
        def transform(centres: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(statistics.whiten(centres), dim=-1)

        self._centres = _Centres(statistics.banks, transform)

    def scores(self, query: Query) -> torch.Tensor:
        """Return the best cosine of each domain's prototypes, all whitened."""
        return self._centres.best(torch.nn.functional.normalize(query.whitened, dim=-1))


class Lda:
    """Linear discriminants: log densities of Gaussians with one shrunk covariance, equal priors."""

    def __init__(self, statistics: Statistics):
        pass

    def scores(self, query: Query) -> torch.Tensor:
        """Return log densities up to what all domains share."""
        return -0.5 * query.squared


RULES: dict[str, Callable[[Statistics], Rule]] = {"lda": Lda, "whitened": Whitened, "ppr": Ppr}

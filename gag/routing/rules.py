"""Rules of the router: each turns query vectors into one score per domain, from the banks' additive statistics alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from gag.routing.bank import Bank

CHUNK = 512  # centres multiplied at once: the product stays in a core's cache


@dataclass(frozen=True)
class Statistics:
    """What all banks say together: their means, and how questions scatter about the mean of their own domain."""

    banks: list[Bank]

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
    def root(self) -> torch.Tensor:
        """The lower Cholesky factor [Dq, Dq] of the shrunk covariance within the domains.

        The scatters are summed in float64, in the banks' order, so that a domain that comes or goes leaves no trace.
        """
        total = torch.zeros_like(self.banks[0].scatter, dtype=torch.float64)
        for bank in self.banks:
            total += bank.scatter
        count = max(1, sum(bank.count - 1 for bank in self.banks))
        return torch.linalg.cholesky(shrink(total / count, count)).float()

    def whiten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Turn vectors [B, Dq], seen from the middle of the domains, so that a domain's questions scatter as a sphere."""
        return torch.linalg.solve_triangular(self.root.T, vectors - self.middle, upper=True, left=False)


@dataclass(frozen=True)
class Query:
    """A batch of encoded questions, and what several rules ask of them, worked out once."""

    vectors: torch.Tensor  # [B, Dq], unit length
    known: Statistics

    @cached_property
    def whitened(self) -> torch.Tensor:
        """The vectors where the scatter within the domains is a sphere [B, Dq]."""
        return self.known.whiten(self.vectors)

    @cached_property
    def squared(self) -> torch.Tensor:
        """Squared Mahalanobis distances to the domains' means [B, N]."""
        products = (self.known.whitened_means @ self.whitened.T).T
        return self.whitened.square().sum(1, keepdim=True) + self.known.squares - 2 * products

    @property
    def nearest(self) -> torch.Tensor:
        """The Mahalanobis distance to the nearest domain's mean [B]: it measures novelty, and routes nothing."""
        return self.squared.amin(1).clamp_min(0).sqrt()


class Rule(Protocol):
    """Scores for the domains of the banks that the rule was made from, in their order."""

    def scores(self, query: Query) -> torch.Tensor:
        """Score a batch for N domains -> [B, N]; higher is nearer."""
        ...


class _Centres:
    """The prototypes of all domains, one under the other, those of domains with equally many together."""

    def __init__(self, centres: list[torch.Tensor]):
        order = sorted(range(len(centres)), key=lambda i: len(centres[i]))
        self._stacked = torch.cat([centres[i] for i in order])  # [sum of P, Dq]
        self._groups = Counter(len(centres[i]) for i in order)  # domains by number of prototypes
        self._places = torch.tensor(order).argsort()

    def best(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the best cosine of each domain, vectors [B, Dq] -> [B, N]; exact, a few centres in the cache at a time."""
        cosines, asked = vectors.new_empty(len(self._stacked), len(vectors)), vectors.T.contiguous()
        for start in range(0, len(self._stacked), CHUNK):
            torch.mm(self._stacked[start : start + CHUNK], asked, out=cosines[start : start + CHUNK])
        shapes = [(count, size, len(vectors)) for size, count in self._groups.items()]
        groups = cosines.split([count * size for count, size, _ in shapes])
        best = [group.view(shape).amax(1) for group, shape in zip(groups, shapes, strict=True)]
        return torch.cat(best)[self._places].T


class Ppr:
    """The published rule: the cosine to a domain's nearest prototype."""

    def __init__(self, known: Statistics):
        self._centres = _Centres([bank.centres for bank in known.banks])

    def scores(self, query: Query) -> torch.Tensor:
        """Return the best cosine of each domain's prototypes."""
        return self._centres.best(query.vectors)


class Whitened:
    """The nearest prototype by cosine where the scatter within the domains is a sphere."""

    def __init__(self, known: Statistics):
        whitened = known.whiten(torch.cat([bank.centres for bank in known.banks]))
        sizes = [len(bank.centres) for bank in known.banks]
        self._centres = _Centres(list(torch.nn.functional.normalize(whitened, dim=-1).split(sizes)))

    def scores(self, query: Query) -> torch.Tensor:
        """Return the best cosine of each domain's prototypes, all whitened."""
        return self._centres.best(torch.nn.functional.normalize(query.whitened, dim=-1))


class Lda:
    """Linear discriminants: log densities of Gaussians with the shrunk covariance within the domains, equal priors."""

    def __init__(self, known: Statistics):
        pass

    def scores(self, query: Query) -> torch.Tensor:
        """Return log densities up to what all domains share."""
        return -0.5 * query.squared


class Blend:
    """A weighted sum of rules' scores."""

    def __init__(self, known: Statistics, weights: dict[str, float]):
        self._rules = [(RULES[name](known), weight) for name, weight in weights.items()]

    def scores(self, query: Query) -> torch.Tensor:
        """Return the weighted sum [B, N]."""
        return torch.stack([weight * rule.scores(query) for rule, weight in self._rules]).sum(0)


RULES: dict[str, Callable[[Statistics], Rule]] = {"lda": Lda, "whitened": Whitened, "ppr": Ppr}


def shrink(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """Mix a covariance [D, D] of `count` vectors with a sphere, by the OAS estimate (Chen et al. 2010) from its traces."""
    width = len(covariance)
    trace, squares = covariance.trace(), covariance.square().sum()
    above = (1 - 2 / width) * squares + trace.square()
    below = (count + 1 - 2 / width) * (squares - trace.square() / width)
    share = float((above / below).clamp(0, 1)) if below > 0 else 1.0
    level = max(float(trace) / width, 1e-6)  # unit vectors: 1e-6 is no scatter at all
    return (1 - share) * covariance + share * level * torch.eye(width, dtype=covariance.dtype)

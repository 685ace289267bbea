"""PPR, the training-free prototype router: the domain with the nearest prototype, ties and doubts to general."""

from dataclasses import dataclass

import torch

from gag.encoder import QueryEncoder
from gag.errors import SettingsError
from gag.prototypes import Bank
from gag.settings import GENERAL


@dataclass(frozen=True)
class Route:
    """Where a question goes, and why."""

    domain: str
    score: float  # best cosine of the chosen domain's prototypes, -1..1
    scores: dict[str, float]
    reason: str


class Router:
    """Route questions over the banks that are present; `general` is one of them."""

    def __init__(self, banks: dict[str, Bank], encoder: QueryEncoder, margin: float = 0.0):
        if GENERAL not in banks:
            raise SettingsError("the router needs the general bank; run `gag prototypes general`")
        for name, bank in banks.items():
            bank.check(encoder.spec, name)
        self._names = [GENERAL, *sorted(name for name in banks if name != GENERAL)]
        self._banks = banks
        self._encoder = encoder
        self._margin = margin

    def route(self, questions: list[str]) -> list[Route]:
        """Route a batch of questions."""
        if not questions:
            return []
        vectors = self._encoder.encode(questions)  # [B, Dq]
        best = [(vectors @ self._banks[name].centres.T).max(-1).values for name in self._names]
        return [self._decide(scores) for scores in torch.stack(best, 1).tolist()]

    def _decide(self, scores: list[float]) -> Route:
        general = scores[0]
        winner = max(range(len(scores)), key=lambda i: (scores[i], -i))  # general is first, so it wins ties
        by_name = dict(zip(self._names, scores, strict=True))
        if winner and scores[winner] - general < self._margin:
            reason = f"{self._names[winner]} leads general by less than {self._margin}"
            return Route(GENERAL, general, by_name, reason)
        return Route(self._names[winner], scores[winner], by_name, "nearest prototype")

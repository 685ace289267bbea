"""The router: the domain that a question fits best; ties, doubts and out-of-distribution questions go to general."""

from dataclasses import dataclass

import torch

from gag.errors import SettingsError
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.backbone_encoder import QueryEncoder
from gag.routing.bank import Bank
from gag.routing.calibration import Calibration, calibrate, log_priors, margin_over_general, set_hash
from gag.routing.rules import Blend, Ppr, Query, Statistics


@dataclass(frozen=True)
class Route:
    """Where a question goes, and why."""

    domain: str
    score: float  # of the domain: its probability, or its best cosine where the router is not calibrated
    reason: str


@dataclass(frozen=True)
class Verdict:
    """A batch's routes as numbers; the domains are the router's `names`, general first."""

    scores: torch.Tensor  # [B, N] of the rule
    margins: torch.Tensor  # [B], of the best specialist over general
    distances: torch.Tensor | None  # [B], to the nearest domain
    chosen: torch.Tensor  # [B], number of the domain
    out_of_distribution: torch.Tensor  # [B], whether it lies too far from all


@dataclass(frozen=True)
class Nearest:
    """A domain's prototype nearest to a question."""

    prototype: int
    questions: int  # that it stands for
    cosine: float


class Router:
    """Route questions over the banks that are present; `general` is one of them.

    With `rule: ppr`, or while banks hold too few questions out (`warning` then says so), it is the published rule.
    """

    def __init__(
        self,
        banks: dict[str, Bank],
        encoder: QueryEncoder,
        settings: RouterSettings,
        saved: Calibration | None = None,
    ):
        if GENERAL not in banks:
            raise SettingsError("the router needs the general bank; run `gag prototypes general`")
        for name, bank in banks.items():
            bank.check(encoder.spec, name)
        self.names = [GENERAL, *sorted(name for name in banks if name != GENERAL)]
        self.banks = [banks[name] for name in self.names]
        self.encoder = encoder
        self.warning = ""
        self._known = Statistics(self.banks)
        self.calibration = None if settings.rule == "ppr" else self._calibrate(self._known, settings, saved)
        self.rule = self.calibration.rule if self.calibration else "ppr"
        self.margin = self.calibration.margin if self.calibration else settings.margin
        self._gains = log_priors(self.names, self.calibration.priors if self.calibration else {})
        self._scorer = Blend(self._known, self.calibration.weights) if self.calibration else Ppr(self._known)

    def route(self, questions: list[str]) -> list[Route]:
        """Route a batch of questions."""
        return self.route_vectors(self.encoder.encode(questions)) if questions else []

    def route_vectors(self, vectors: torch.Tensor) -> list[Route]:
        """Route encoded questions [B, Dq]."""
        verdict = self.judge(vectors)
        scores = self._shown(verdict).gather(1, verdict.chosen[:, None])[:, 0]
        rows = zip(
            verdict.chosen.tolist(),
            scores.tolist(),
            verdict.margins.tolist(),
            verdict.out_of_distribution.tolist(),
            strict=True,
        )
        return [
            Route(self.names[chosen], score, self._reason(chosen, margin, outside))
            for chosen, score, margin, outside in rows
        ]

    def scores(self, question: str) -> dict[str, float]:
        """Score a question for every domain."""
        shown = self._shown(self.judge(self.encoder.encode([question])))
        return dict(zip(self.names, shown[0].tolist(), strict=True))

    def judge(self, vectors: torch.Tensor) -> Verdict:
        """Decide on encoded questions [B, Dq]: a specialist must lie above general, and the question must lie near a domain."""
        query = Query(vectors, self._known)
        scores = self._scorer.scores(query) + self._gains  # [B, N]
        if len(self.names) == 1:
            nowhere = torch.zeros(len(vectors), dtype=torch.long)
            return Verdict(scores, torch.full((len(vectors),), -torch.inf), None, nowhere, nowhere.bool())
        margins = margin_over_general(scores)
        distances, out_of_distribution = None, torch.zeros(len(vectors), dtype=torch.bool)
        if self.calibration:
            distances = query.nearest
            out_of_distribution = distances > self.calibration.far
        chosen = torch.where((margins > self.margin) & ~out_of_distribution, scores[:, 1:].argmax(1) + 1, 0)
        return Verdict(scores, margins, distances, chosen, out_of_distribution)

    def nearest(self, vector: torch.Tensor) -> dict[str, Nearest]:
        """Find each domain's prototype nearest to a vector [Dq]."""
        found = {}
        for name, bank in zip(self.names, self.banks, strict=True):
            cosine, place = (bank.centres @ vector).max(0)
            found[name] = Nearest(int(place), int(bank.sizes[place]), float(cosine))
        return found

    def _shown(self, verdict: Verdict) -> torch.Tensor:
        return verdict.scores.softmax(1) if self.calibration else verdict.scores

    def _reason(self, chosen: int, margin: float, outside: bool) -> str:
        best = "nearest prototype" if self.calibration is None else f"best by {self.rule}"
        if chosen or margin <= 0:
            return best
        if outside:
            return "far from every domain"
        return f"the best specialist lies above general by {margin:.3g}, not over {self.margin:.3g}"

    def _calibrate(
        self, known: Statistics, settings: RouterSettings, saved: Calibration | None
    ) -> Calibration | None:
        """Take what was saved for this very set of banks, or decide anew; None where the banks hold too little out."""
        asked = None if settings.rule == "auto" else settings.rule
        ours = saved and saved.bank_set == set_hash(self.names, known) and asked in (None, saved.rule)
        if saved and ours and saved.priors == settings.priors:
            return saved
        if len(self.names) == 1:
            return None
        made = calibrate(self.names, known, saved.alpha if saved else settings.alpha, asked, settings.priors)
        if isinstance(made, str):
            self.warning = f"the router is not calibrated and routes by ppr: {made}"
            return None
        if made.reached > made.alpha:
            self.warning = (
                f"general holds {made.questions[GENERAL]} questions out: they promise that at most {made.reached:.1%} of "
                f"general questions go to specialists, not {made.alpha:.1%}; name more in general.questions"
            )
        return made

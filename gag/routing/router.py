"""The router: the domain that a question fits best.

Ties, doubts and what is out of distribution go to general.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gag.errors import SettingsError
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.bank import Bank, check_encoder
from gag.routing.calibration import CANDIDATES, Calibration, calibrate, log_priors
from gag.routing.margins import STEADY, at_most, margin_over_general
from gag.routing.query_encoder import QueryEncoder
from gag.routing.rules import RULES, Query, Statistics, covariance_root, total_scatter
from gag.routing.temperatures import summed

SURE = 3.0  # nats, odds of 20 to 1: general is sure of a question whose best specialist lies so far below
ENOUGH = 10  # questions of general that can be judged, below which nothing is decided by them


@dataclass(frozen=True)
class Route:
    """Where a question goes, and why.

    Attributes:
        domain: a domain's name, or `general`.
        score: the domain's probability, or its best cosine where the router is not calibrated.
        reason: what decided it, in words.
        scores: of every domain, and of general, in the same measure.
        doubtful: it is like no question that is known, or general is not sure of it: it may be the rest of
            what was said before.
    """

    domain: str
    score: float
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)
    doubtful: bool = False


@dataclass(frozen=True)
class Verdict:
    """A batch's routes as numbers; the domains are the router's `names`, general first."""

    scores: torch.Tensor  # [B, N] of the rule
    margins: torch.Tensor  # [B], of the best specialist over general, as they count (Spread.counted)
    needed: torch.Tensor  # [B], the margin that this specialist needs
    distances: torch.Tensor | None  # [B], from the domain that scores best; 1: as its own questions
    chosen: torch.Tensor  # [B], number of the domain
    out_of_distribution: torch.Tensor  # [B], whether it lies too far from all


@dataclass(frozen=True)
class Nearest:
    """A domain's prototype nearest to a question."""

    prototype: int
    questions: int  # that it stands for
    cosine: float


@dataclass(frozen=True)
class RouterState:
    """What was decided for a set of domains, and what deciding it anew for another set starts from."""

    members: dict[str, str]  # a domain's name -> the identity of its bank
    calibration: Calibration | None  # None: it routes by ppr
    warning: str
    total: torch.Tensor | None = None  # the sum of the members' scatters (rules.total_scatter)
    root: torch.Tensor | None = None  # of the covariance within the domains [Dq, Dq]


class Router:
    """Routes questions over the banks that are present; `general` is one of them.

    With `rule: ppr`, or while general has too few questions to judge by (`state.warning` then says so), it is
    the published rule.

    Args:
        banks: a bank of each domain, and of general.
        encoder: what turns questions into vectors; a bank of another one is refused.
        settings: the rule, the risk, the priors.
        saved: what was decided before; it is kept if it is of this very set, and else decided anew from it.

    Raises:
        SettingsError: no general bank.
        MismatchError: a bank was made by another encoder.
    """

    def __init__(
        self,
        banks: Mapping[str, Bank],
        encoder: QueryEncoder,
        settings: RouterSettings,
        saved: RouterState | None = None,
    ):
        if GENERAL not in banks:
            raise SettingsError("the router needs the general bank; run `gag prototypes general`")
        for name, bank in banks.items():
            check_encoder(bank, encoder.spec, name)
        self.names = [GENERAL, *sorted(name for name in banks if name != GENERAL)]
        self.banks: list[Bank] = [banks[name] for name in self.names]
        self.encoder = encoder
        self.state = decide(dict(zip(self.names, self.banks, strict=True)), settings, saved)
        self.calibration = self.state.calibration
        self.rule = self.calibration.rule if self.calibration else "ppr"
        self.margins = (
            self.calibration.margins if self.calibration else dict.fromkeys(self.names[1:], settings.margin)
        )
        self._needed = torch.tensor([0.0, *(self.margins[name] for name in self.names[1:])])  # [N]
        self._weights = self.calibration.weights if self.calibration else {"ppr": 1.0}
        self._gains = log_priors(self.names, self.calibration.priors if self.calibration else {})
        self._statistics = Statistics(self.banks, self.state.root)
        used = {*self._weights, "whitened"} if self.calibration else {*self._weights}
        self._rules = {name: RULES[name](self._statistics) for name in sorted(used)}

    def route(self, questions: Sequence[str]) -> list[Route]:
        """Route a batch of questions."""
        return self.route_vectors(self.encoder.encode(list(questions))) if questions else []

    def route_vectors(self, vectors: torch.Tensor) -> list[Route]:
        """Route encoded questions [B, Dq]."""
        verdict = self.judge(vectors)
        rows = zip(
            verdict.chosen.tolist(),
            self._shown(verdict).tolist(),
            verdict.margins.tolist(),
            verdict.needed.tolist(),
            verdict.out_of_distribution.tolist(),
            self._doubtful(verdict).tolist(),
            strict=True,
        )
        return [
            Route(
                self.names[chosen],
                scores[chosen],
                self._reason(chosen, margin, needed, outside),
                dict(zip(self.names, scores, strict=True)),
                doubtful,
            )
            for chosen, scores, margin, needed, outside, doubtful in rows
        ]

    def scores(self, question: str) -> dict[str, float]:
        """Score a question for every domain."""
        shown = self._shown(self.judge(self.encoder.encode([question])))
        return dict(zip(self.names, shown[0].tolist(), strict=True))

    def judge(self, vectors: torch.Tensor) -> Verdict:
        """Decide on encoded questions [B, Dq].

        A specialist must lie above general, and the question near a domain.
        """
        query = Query(vectors, self._statistics)
        raw = {name: rule.scores(query) for name, rule in self._rules.items()}
        scores = summed(raw, self._weights) + self._gains  # [B, N]
        if len(self.names) == 1:
            nowhere = torch.zeros(len(vectors), dtype=torch.long)
            return Verdict(
                scores, torch.full((len(vectors),), -torch.inf), nowhere, None, nowhere, nowhere.bool()
            )
        margins, doors = margin_over_general(scores)
        needed = self._needed[doors]
        distances, outside = None, torch.zeros(len(vectors), dtype=torch.bool)
        if self.calibration:
            spread = self.calibration.spread
            distances = spread.distances(query.squared, raw["whitened"], scores.argmax(1), self.names)
            counted = spread.counted(distances, margins)
            margins, outside = counted, (counted < margins) | (distances > spread.far)
        needed = self._needed[doors]
        return Verdict(scores, margins, needed, distances, torch.where(margins > needed, doors, 0), outside)

    def nearest(self, vector: torch.Tensor) -> dict[str, Nearest]:
        """Find each domain's prototype nearest to a vector [Dq]."""
        found = {}
        for name, bank in zip(self.names, self.banks, strict=True):
            cosine, place = (bank.centres @ vector).max(0)
            found[name] = Nearest(int(place), int(bank.sizes[place]), float(cosine))
        return found

    def _shown(self, verdict: Verdict) -> torch.Tensor:
        return verdict.scores.softmax(1) if self.calibration else verdict.scores

    def _doubtful(self, verdict: Verdict) -> torch.Tensor:
        """Say which questions may be the rest of what was said before [B].

        Without a calibration, all of general's.
        """
        if self.calibration is None or verdict.distances is None:
            return verdict.chosen == 0
        unsure = (verdict.chosen == 0) & (verdict.margins > -SURE)
        return unsure | (verdict.distances > self.calibration.spread.near)

    def _reason(self, chosen: int, margin: float, needed: float, outside: bool) -> str:
        best = "nearest prototype" if self.calibration is None else f"best by {self.rule}"
        if outside:
            return "far from every domain"
        if chosen or margin <= 0:
            return best
        return f"the best specialist lies above general by {margin:.3g}, not over {needed:.3g}"


def settled(
    banks: Mapping[str, Bank], settings: RouterSettings, saved: RouterState | None
) -> RouterState | None:
    """Return what stands without a look at the banks' statistics; None where it must be decided from them.

    That is what was saved for this very set, or the published rule: asked for, or for want of questions of
    general to judge by.
    """
    members = {name: bank.identity for name, bank in banks.items()}
    if settings.rule == "ppr" or len(banks) == 1:
        return RouterState(members, None, "")
    if bare := [name for name, bank in banks.items() if not bank.sample_count]:
        said = f"{', '.join(bare)}: centres alone, without questions to judge by; `gag prototypes` has them"
        return RouterState(members, None, f"the router is not calibrated and routes by ppr: {said}")
    if (count := banks[GENERAL].sample_count) < ENOUGH:
        said = (
            f"general has {count} questions to judge by, {ENOUGH} are needed; name more in general.questions"
        )
        return RouterState(members, None, f"the router is not calibrated and routes by ppr: {said}")
    if saved and saved.calibration and saved.members == members and _serves(saved.calibration, settings):
        return saved
    return None


def decide(banks: Mapping[str, Bank], settings: RouterSettings, saved: RouterState | None) -> RouterState:
    """Take what stands (`settled`), or decide from the banks' statistics; general is the first of them.

    Where domains only came, their scatters are added to the saved sum; else all are summed again. The share
    of general questions that was saved is kept.
    """
    if state := settled(banks, settings, saved):
        return state
    names, members = list(banks), {name: bank.identity for name, bank in banks.items()}
    total = _total(members, banks, saved)
    root = covariance_root(total, list(banks.values()))
    alpha = saved.calibration.alpha if saved and saved.calibration else settings.alpha
    made = calibrate(names, list(banks.values()), total, settings, alpha)
    if made is None:
        said = "general, or every domain, has one question alone, whatever its wordings"
        return RouterState(members, None, f"the router is not calibrated and routes by ppr: {said}")
    return RouterState(members, made, _promise(made), total, root)


def _serves(saved: Calibration, settings: RouterSettings) -> bool:
    """Say whether saved decisions are what the settings ask for: `auto` is a choice among all rules."""
    chosen = settings.rule == "auto" and saved.losses.keys() == CANDIDATES.keys()
    same = (saved.priors, saved.max_abstention) == (settings.priors, settings.max_abstention)
    return (chosen or settings.rule == saved.rule) and same


def _total(members: dict[str, str], banks: Mapping[str, Bank], saved: RouterState | None) -> torch.Tensor:
    if saved and saved.total is not None and saved.members.items() <= members.items():
        fresh = [banks[name] for name in members.keys() - saved.members.keys()]
        return total_scatter(fresh, saved.total)
    return total_scatter(list(banks.values()))


def _promise(made: Calibration) -> str:
    """Say what these questions can promise, where it is less than was asked for, and what would help."""
    if made.promised <= made.alpha:
        return ""
    count = made.questions[GENERAL]
    said = f"at most {made.promised:.1%} of general questions go to specialists, not {made.alpha:.1%}"
    if made.promised <= at_most(0, count):
        more = more_questions(made)
        return f"{said}: general has {count} questions to judge by; {more} more in general.questions"
    kept = f"a smaller share would cost more than {made.max_abstention:.0%} of some domain's questions"
    return f"{said}: {kept} (router.max_abstention); `gag router show` draws one against the other"


def more_questions(made: Calibration) -> int:
    """Return how many more general questions would put STEADY of them beyond the margins."""
    return max(0, math.ceil(STEADY / made.alpha) - made.questions[GENERAL])

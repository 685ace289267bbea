"""What the held-out vectors of the banks decide: the rule, how far a specialist must lie above general, and what is out of distribution."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gag.errors import ArtifactError
from gag.project.artifacts import write_json
from gag.routing.rules import RULES, Query, Statistics

CANDIDATES = {
    "blend": ("lda", "whitened"),
    "lda": ("lda",),
    "whitened": ("whitened",),
    "ppr": ("ppr",),
}  # by preference
ENOUGH = 10  # held-out questions of each domain, below which nothing is decided by them
SUREST = 20.0  # log odds
FAR_SHARE = 0.99  # of the specialists' held-out questions lie nearer than some distance, and ...
FAR_SLACK = 3.0  # times that distance is one out of distribution: new wordings of a domain lie further out than its own questions


@dataclass(frozen=True)
class Calibration:
    """Decisions for one set of banks; another set is calibrated anew."""

    bank_set: str  # hash of the set of banks
    rule: str
    alpha: float  # the share of general questions that may go to specialists
    reached: float  # the smallest share >= alpha that so many held-out general questions can promise
    weights: dict[
        str, float
    ]  # of the rules in the sum that is the score: their softmax over the domains is a probability
    margin: float  # by how much a specialist's score must lie above general's
    far: float  # distance to the nearest domain beyond which a question is out of distribution
    losses: dict[str, float]  # log loss of each candidate, mean over the domains
    recalls: dict[str, float]  # share that it routes right, mean over the domains, before abstention
    questions: dict[str, int]  # held out, by domain
    priors: dict[str, float]  # by domain, 1 where not named: their logarithms are added to the scores


def load_calibration(path: Path) -> Calibration | None:
    """Read router.json, if it is there."""
    if not path.is_file():
        return None
    try:
        found = Calibration(**json.loads(path.read_text(encoding="utf-8")))
        numbers = (
            found.alpha,
            found.reached,
            found.margin,
            found.far,
            *found.weights.values(),
            *found.priors.values(),
        )
        if not found.weights.keys() <= RULES.keys() or not all(math.isfinite(number) for number in numbers):
            raise ValueError("it names an unknown rule, or a number that is not finite")
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path.name} cannot be read ({error}); run `gag router calibrate` again"
        ) from error


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write router.json at once."""
    fresh = path.with_name(f".{path.name}")
    write_json(fresh, asdict(calibration))
    fresh.rename(path)


def set_hash(names: list[str], known: Statistics) -> str:
    """Name a set of banks."""
    pairs = (f"{name} {bank.hash}\n" for name, bank in zip(names, known.banks, strict=True))
    return hashlib.sha256("".join(pairs).encode()).hexdigest()


def log_priors(names: list[str], priors: dict[str, float]) -> torch.Tensor:
    """Return what the scores of the domains gain by how often they are asked [N]; zeros where nothing is known of it."""
    return torch.tensor([math.log(priors.get(name, 1.0)) for name in names])


def calibrate(
    names: list[str], known: Statistics, alpha: float, rule: str | None, priors: dict[str, float]
) -> Calibration | str:
    """Decide from the held-out vectors, general first among `names`; return what is missing if there are too few.

    Each candidate is judged by its log loss at its own best temperature. Without a given rule, the first of `CANDIDATES` is
    taken whose loss is within one standard error of the least.
    """
    counts = {name: len(bank.held_out) for name, bank in zip(names, known.banks, strict=True)}
    short = min(counts, key=lambda name: counts[name])
    if counts[short] < ENOUGH:
        return f"{short} holds {counts[short]} questions out for calibration, {ENOUGH} are needed"
    vectors = torch.cat([bank.held_out for bank in known.banks])  # [C, Dq]
    truth = torch.tensor([i for i, count in enumerate(counts.values()) for _ in range(count)])
    query = Query(vectors, known)
    raw = {name: RULES[name](known).scores(query).double() for name in RULES}
    weights = {
        name: _weights(raw, parts, truth) for name, parts in CANDIDATES.items() if rule in (None, name)
    }
    scores = {
        name: sum((raw[part] * w for part, w in chosen.items()), torch.zeros(()))
        for name, chosen in weights.items()
    }
    losses = {name: _losses(scores[name], truth) for name in weights}
    least = min(losses.values(), key=lambda each: float(each.mean()))
    best = next(name for name, each in losses.items() if _not_worse(each, least))
    margin, reached = _conformal_margin(
        margin_over_general(scores[best][truth == 0] + log_priors(names, priors)), alpha
    )
    return Calibration(
        bank_set=set_hash(names, known), rule=best, alpha=alpha, reached=reached, weights=weights[best], margin=margin,
        far=FAR_SLACK * float(query.nearest[truth > 0].quantile(FAR_SHARE)),
        losses={name: round(float(each.mean()), 5) for name, each in losses.items()},
        recalls={name: _recall(scores[name], truth) for name in weights}, questions=counts, priors=priors,
    )  # fmt: skip


def margin_over_general(scores: torch.Tensor) -> torch.Tensor:
    """Return how far the best specialist lies above general, scores [B, N] -> [B]."""
    return scores[:, 1:].amax(1) - scores[:, 0]


def _weights(raw: dict[str, torch.Tensor], parts: tuple[str, ...], truth: torch.Tensor) -> dict[str, float]:
    """Weigh each part by its own temperature, and the sum by one more."""
    single = {part: 1 / _temperature(raw[part], truth) for part in parts}
    whole = _temperature(torch.stack([raw[part] * weight for part, weight in single.items()]).sum(0), truth)
    return {part: weight / whole for part, weight in single.items()}


def _temperature(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the temperature, of a geometric grid, at which the softmax of scores [C, N] has the least log loss.

    It is never so low that the middle question is surer than SUREST, however far apart the domains lie.
    """
    best = scores.topk(2, dim=1).values
    lowest = float((best[:, 0] - best[:, 1]).median()) / SUREST or 1.0
    return min((lowest * 1.1**i for i in range(150)), key=lambda t: float(_losses(scores / t, truth).mean()))


def _losses(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return each question's log loss [C], weighted so that every domain counts alike."""
    losses = torch.nn.functional.cross_entropy(scores, truth, reduction="none")
    sizes = torch.bincount(truth)
    return losses * (len(truth) / len(sizes)) / sizes[truth]


def _not_worse(losses: torch.Tensor, least: torch.Tensor) -> bool:
    """Say whether losses [C] exceed the least on average by no more than a standard error of the difference."""
    more = losses - least
    return float(more.mean()) <= float(more.std()) / math.sqrt(len(more))


def _recall(scores: torch.Tensor, truth: torch.Tensor) -> float:
    return round(_mean_over_domains((scores.argmax(1) == truth).double(), truth), 4)


def _mean_over_domains(values: torch.Tensor, truth: torch.Tensor) -> float:
    return float(torch.stack([values[truth == i].mean() for i in truth.unique()]).mean())


def _conformal_margin(margins: torch.Tensor, alpha: float) -> tuple[float, float]:
    """Split conformal: of exchangeable general questions at most a share of `alpha` has a larger one -> (margin, share reached)."""
    count = len(margins)
    place = math.ceil((count + 1) * (1 - alpha))
    reached = alpha if place <= count else 1 / (count + 1)
    return max(0.0, float(margins.sort().values[min(place, count) - 1])), reached

"""What a comparison found: figures of methods and slices, GAG's worst answers, memory, and its provenance."""

from dataclasses import asdict, dataclass
from typing import Any

from gag.evaluation.costs import Resident
from gag.evaluation.intervals import Estimate, Interval
from gag.project.domain import ModelFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.settings import DecodingSettings


@dataclass(frozen=True)
class MethodFigures:
    """A method's quality and costs; None where there is no such figure."""

    label: str
    quality: float  # mean of the metric over the test questions
    interval: Interval
    in_context: float | None  # share of questions whose gold stands in the text that the method adds
    tokens_added: float
    general: float | None  # share of general questions answered right, as a user meets the method
    general_forced: float | None  # the same with the method always on: without GAG's router
    build_seconds: float | None
    build_mb: float | None  # peak memory of the process in the heaviest stage
    disk_mb: float | None
    first_token_ms: float
    per_token_ms: float | None
    gag_leads_by: Estimate | None = None  # on the same questions; None for GAG itself


@dataclass(frozen=True)
class SliceFigures:
    """A group of questions: how many, and each method's quality on them."""

    questions: int
    quality: dict[str, float]
    in_context: dict[str, float]


@dataclass(frozen=True)
class WorstAnswer:
    """A question that GAG answers badly, its gold, and what some methods say."""

    question: str
    gold: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Provenance:
    """What a comparison was made from."""

    base: ModelFacts
    expert: ModelFacts
    readout: ReadoutSettings
    projector: str
    data: dict[str, str]
    created: str
    decoding: DecodingSettings
    passages: int
    dense_encoder: str
    colbert: str | None
    late_interaction: str = "the expert backbone's last states"

    def as_json(self) -> dict[str, Any]:
        """Turn it into plain values, under the names that the report shows."""
        return {
            "base": self.base.model_dump(),
            "expert": self.expert.model_dump(),
            "readout": self.readout.model_dump(mode="json"),
            "projector": self.projector,
            "data": self.data,
            "created": self.created,
            "decoding": self.decoding.model_dump(),
            "passages": self.passages,
            "dense encoder": self.dense_encoder,
            "late interaction": self.late_interaction,
            **({"ColBERT": self.colbert} if self.colbert else {}),
        }


@dataclass(frozen=True)
class Comparison:
    """A domain's questions answered by several methods, in the order in which they were asked for."""

    domain: str
    metric: str
    questions: int
    quick: bool
    methods: dict[str, MethodFigures]
    slices: dict[str, SliceFigures]
    worst: list[WorstAnswer]
    memory: Resident
    facts: Provenance
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Turn it into what compare.json holds."""
        plain = asdict(self)
        for figures in plain["methods"].values():
            if figures["gag_leads_by"] is None:
                del figures["gag_leads_by"]
        return plain | {
            "slices": {name: {"questions": s.questions, **s.quality} for name, s in self.slices.items()},
            "contexts": {name: s.in_context for name, s in self.slices.items()},
            "worst": [{"question": w.question, "gold": w.gold, **w.answers} for w in self.worst],
            "facts": self.facts.as_json(),
        }


def kind_of(method: str) -> str:
    """Return the kind of a method: retrieval stands with each number of passages, as in bm25-3."""
    return method.split("-")[0]

"""What a method costs: seconds and memory to build, bytes on disk, and what is resident with many domains."""

from dataclasses import dataclass
from typing import Any

from gag.engine.engine import LocalGAG
from gag.models.backbone import Backbone
from gag.project.artifacts import folder_bytes, read_manifest
from gag.project.project import Project

STAGES = ("adapt", "readouts/align", "align")
DOMAINS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Cost:
    """What a method takes to build, and what a domain needs on disk beside the base; None: not recorded."""

    seconds: float | None
    peak_bytes: int | None  # of the process, in its heaviest stage
    disk_bytes: int | None


NOTHING = Cost(0.0, 0, 0)


@dataclass(frozen=True)
class Resident:
    """Megabytes of weights and indexes that are resident, by arrangement, for each count of domains."""

    domains: list[int]
    mb: dict[str, list[float]]


def build_cost(project: Project, domain: str, disk_bytes: int) -> Cost:
    """Take a domain's cost from what its stages' manifests recorded; a figure that one lacks is None."""
    folders = [project.run(domain, stage) for stage in STAGES]
    recorded = [read_manifest(folder) if folder.is_dir() else {} for folder in folders]
    seconds = _numbers(recorded, "seconds")
    peaks = _numbers(recorded, "peak_bytes")
    return Cost(round(sum(seconds), 1) if seconds else None, int(max(peaks)) if peaks else None, disk_bytes)


def resident(gag: LocalGAG, domain: str, lora_mb: float | None, index_mb: float | None) -> Resident:
    """Say what is resident with 1 to 64 domains: one base and one expert with modules, or the alternatives.

    `lora_mb` is of an adapter of the base and `index_mb` of a dense index, where they were compared.
    """
    base, expert = _weights_mb(gag.base), _weights_mb(gag.experts.backbone)
    module = folder_bytes(gag.project.domain(domain)) / 1e6
    lines = {
        "GAG: base, one expert, a module each": [base + expert + n * module for n in DOMAINS],
        "published code: a base and an expert each": [n * (base + expert) for n in DOMAINS],
    }
    if lora_mb is not None:
        lines["base and a LoRA adapter each"] = [base + n * lora_mb for n in DOMAINS]
    if index_mb is not None:
        lines["base, encoder and a dense index each"] = [base + expert + n * index_mb for n in DOMAINS]
    return Resident(list(DOMAINS), {name: [round(v, 1) for v in line] for name, line in lines.items()})


def _numbers(recorded: list[dict[str, Any]], name: str) -> list[float]:
    """Return a figure of every manifest; nothing where one lacks it."""
    found = [facts.get(name) for facts in recorded]
    numbers: list[float] = [one for one in found if isinstance(one, float | int)]
    return numbers if len(numbers) == len(found) else []


def _weights_mb(backbone: Backbone) -> float:
    return sum(p.nbytes for name, p in backbone.model.named_parameters() if "lora" not in name) / 1e6

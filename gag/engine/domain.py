"""The plug-in folder of a domain: expert, projector, bank, prompts and card, described by domain.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gag.errors import ArtifactError, MismatchError
from gag.models.backbone import ModelFacts
from gag.project.artifacts import load_tensors, read_manifest
from gag.project.settings import PromptSettings, ReadoutSettings
from gag.projection.projector import Projector, make_projector
from gag.routing.bank import FILE as BANK
from gag.routing.bank import Bank, load_bank

MANIFEST = "domain.json"
PROJECTOR = "projector.safetensors"
EXPERT = "expert"


class DomainFacts(BaseModel):
    """What domain.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    key: str
    name: str
    created: str
    base: ModelFacts
    expert: ModelFacts
    tuning: str
    projector: str
    readout: ReadoutSettings
    prompts: PromptSettings
    bank: dict[str, Any]
    data: dict[str, str]
    scores: dict[str, float]


@dataclass(frozen=True)
class Domain:
    """A domain on disk, whole and unedited."""

    folder: Path
    facts: DomainFacts
    files: tuple[str, ...]  # all that belongs to it, beside domain.json

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.facts.name

    @property
    def expert(self) -> Path:
        """The folder of its adapter or full weights."""
        return self.folder / EXPERT

    def projector(self) -> Projector:
        """Load the projector."""
        facts = self.facts
        return load_projector(
            self.folder, facts.projector, facts.readout, facts.expert.width, facts.base.width
        )

    def bank(self) -> Bank:
        """Load the router's bank."""
        return load_bank(self.folder, self.facts.bank)


def load_domain(folder: Path) -> Domain:
    """Read and check a domain folder: its files against their hashes, its description against the schema."""
    content = read_manifest(folder, MANIFEST)
    try:
        described = {key: value for key, value in content.items() if key not in ("schema", "files")}
        facts = DomainFacts.model_validate({"schema_version": content["schema"], **described})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArtifactError(
            f"{folder.name}/{MANIFEST}: {where}: {problem['msg']}; build or copy the domain again"
        ) from error
    missing = {PROJECTOR, BANK} - content["files"].keys()
    if missing or not any(name.startswith(f"{EXPERT}/") for name in content["files"]):
        raise ArtifactError(f"{folder.name}/{MANIFEST} lists no projector, bank or expert; build it again")
    return Domain(folder, facts, tuple(content["files"]))


def load_projector(folder: Path, kind: str, readout: ReadoutSettings, expert: int, base: int) -> Projector:
    """Load a projector between models of widths De and Db in the precision it is stored in; another shape is refused."""
    projector = make_projector(kind, readout.shape(expert, base), base)
    tensors = load_tensors(folder / PROJECTOR)
    expected = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if got != expected:
        raise MismatchError(
            f"the projector in {folder.name} has shapes {got}, expected {expected}; build the domain again"
        )
    projector.load_state_dict(tensors, assign=True)
    return projector.eval().requires_grad_(False)

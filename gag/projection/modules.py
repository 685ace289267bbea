"""Load the projector of a domain folder, or of a stage's."""

from pathlib import Path

from gag.errors import MismatchError
from gag.project.domain import PROJECTOR, Domain
from gag.project.hyperparameters import ReadoutSettings
from gag.project.tensors import load_tensors
from gag.projection.projector import Projector, make_projector


def domain_projector(domain: Domain) -> Projector:
    """Load a domain's projector."""
    facts = domain.facts
    return load_projector(domain.folder, facts.projector, facts.readout, facts.expert.width, facts.base.width)


def load_projector(folder: Path, kind: str, readout: ReadoutSettings, expert: int, base: int) -> Projector:
    """Load a projector between models of widths De and Db, in the precision that it is stored in.

    Raises:
        MismatchError: its tensors have other shapes than such a projector's.
        ArtifactError: the file is missing or cut short.
    """
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

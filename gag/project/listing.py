"""The domains of a project as their descriptions say; nothing of them is loaded or hashed."""

from dataclasses import dataclass

from gag.errors import GagError
from gag.project.artifacts import folder_bytes
from gag.project.domain import CARD, Domain, load_domain
from gag.project.project import Project


@dataclass(frozen=True)
class DomainRow:
    """One line of the list of domains."""

    name: str
    built: str = "-"
    base: str = "-"
    expert: str = "-"
    tuning: str = "-"
    megabytes: float = 0.0
    val_loss: float | None = None
    refusal: str = ""  # why its description cannot be read


def list_domains(project: Project) -> list[DomainRow]:
    """Describe every domain that is present, by its description alone; one that cannot be read says why."""
    strays = [DomainRow(name, refusal=reason) for name, reason in project.strays().items()]
    return [*(_row(project, name) for name in project.present()), *strays]


def show_domain(project: Project, name: str) -> Domain:
    """Read one domain's description."""
    return load_domain(project.domain(project.require(name)), only=(CARD,))


def _row(project: Project, name: str) -> DomainRow:
    folder = project.domain(name)
    try:
        facts = load_domain(folder, only=()).facts
    except GagError as error:
        return DomainRow(name, refusal=str(error))
    return DomainRow(
        name,
        facts.created,
        facts.base.model,
        facts.expert.model,
        facts.tuning,
        round(folder_bytes(folder) / 2**20, 2),
        None if facts.scores.val_loss is None else round(facts.scores.val_loss, 4),
    )

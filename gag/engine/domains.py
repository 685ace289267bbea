"""Plug domains in and out: verify, add and remove the folders under domains/."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gag.errors import ArtifactError, SettingsError
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone
from gag.project.artifacts import locked, recover
from gag.project.domain import DOMAIN, Domain, EncoderSpec, ModelFacts, load_domain
from gag.project.project import Project
from gag.project.settings import check_name
from gag.projection.modules import domain_projector
from gag.routing.bank import check_encoder
from gag.routing.state import domain_bank, load_router, project_encoder, twins


def verify_domains(project: Project, names: list[str]) -> list[str]:
    """Hash every file anew, and check shapes and the models that the domains were built for.

    Args:
        project: whose domains they are.
        names: which of them (default: all that are present).

    Raises:
        ArtifactError: a file is missing, edited or cut short.
        MismatchError: a domain was built for another base, expert or encoder.
    """
    domains = [
        load_domain(project.domain(project.require(name)), anew=True) for name in names or project.present()
    ]
    for reason in twins({domain.name: domain for domain in domains}).values():
        raise ArtifactError(reason)
    fit, _ = _fit(project)
    for domain in domains:
        fit.check(domain)
    return [domain.name for domain in domains]


@dataclass(frozen=True)
class Fit:
    """What a domain must have been built for."""

    base: ModelFacts
    expert: ModelFacts
    encoder: EncoderSpec

    def check(self, domain: Domain) -> None:
        """Refuse a domain of wrong shapes, or of another base, expert or encoder."""
        name = domain.facts.name
        domain_projector(domain)
        domain_bank(domain).check()
        domain.facts.base.check("base", self.base, name)
        domain.facts.expert.check("expert", self.expert, name)
        check_encoder(domain_bank(domain), self.encoder, name)


def add_domain(project: Project, folder: Path) -> str:
    """Copy a domain folder into the project once it is whole and fits, and calibrate for the new set.

    Args:
        project: where it goes.
        folder: a domain's folder, such as other-project/domains/materials.

    Returns:
        The domain's name: the one that it was built under.

    Raises:
        ArtifactError: it is no domain's folder, or not whole.
        SettingsError: a domain of that name is here.
        MismatchError: it was built for another base, expert or encoder.
    """
    fit, expert = _fit(project)
    name = copy_domain(project, folder, fit)
    load_router(project, expert)
    return name


def copy_domain(project: Project, folder: Path, fit: Fit) -> str:
    """Copy a domain folder into the project once it is whole and fits; errors as `add_domain`."""
    if not (folder / DOMAIN).is_file():
        raise ArtifactError(
            f"{folder} holds no {DOMAIN}; point at a domain folder, such as other/domains/materials"
        )
    domain = load_domain(folder, anew=True)
    name = check_name(domain.facts.name)
    target = project.domain(name)
    with locked(project.root / "runs"):
        recover(target)
        if target.exists():
            raise SettingsError(f"{name} is already here; run `gag domains remove {name}` first")
        fit.check(domain)
        temporary = target.with_name(f".{target.name}.new")
        for file in (DOMAIN, *domain.files):
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, temporary / file)
        temporary.rename(target)
    return name


def remove_domain(project: Project, name: str) -> None:
    """Take a domain's folder away, and calibrate the router for the rest; its runs and data stay."""
    take_away(project, name)
    if project.general.is_dir():
        load_router(project)


def take_away(project: Project, name: str) -> None:
    """Take a domain's folder away."""
    folder = project.domain(project.require(name))
    gone = folder.with_name(f".{folder.name}.gone")
    with locked(project.root / "runs"):
        if folder.is_symlink():  # what it points to is somebody else's
            folder.unlink()
        else:
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone)


def _fit(project: Project) -> tuple[Fit, Backbone]:
    """Load the project's models, and say what fits them -> that, and the expert backbone."""
    base = load_backbone(project.settings.base, project.root).facts
    expert = load_backbone(project.settings.expert, project.root)
    encoder = project_encoder(project, lambda: expert)
    return Fit(base, expert.facts, encoder.spec), expert

"""Plug domains in and out: list, describe, verify, add and remove the folders under domains/."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gag.engine.domain import MANIFEST, Domain, load_domain
from gag.errors import ArtifactError, SettingsError
from gag.models.backbone import load_backbone
from gag.project.artifacts import locked, recover
from gag.project.project import Project
from gag.project.settings import check_name
from gag.routing.encoders import make_encoder


@dataclass(frozen=True)
class DomainRow:
    """One line of the list of domains."""

    name: str
    built: str
    base: str
    expert: str
    tuning: str
    megabytes: float
    val_loss: float


def list_domains(project: Project) -> list[DomainRow]:
    """Describe every domain that is present."""
    return [_row(load_domain(project.domain(name))) for name in project.present()]


def show_domain(project: Project, name: str) -> Domain:
    """Load one domain's description."""
    return load_domain(project.domain(project.require(name)))


def verify_domains(project: Project, names: list[str]) -> list[str]:
    """Check files, shapes, and that base and expert are those that the domains were built for; return the names."""
    domains = [load_domain(project.domain(project.require(name))) for name in names or project.present()]
    for domain in domains:
        domain.projector()
        domain.bank()
    _check_models(project, domains)
    return [domain.name for domain in domains]


def add_domain(project: Project, folder: Path) -> str:
    """Copy a domain folder into the project once it is whole and fits the project's models; return its name."""
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{folder} holds no {MANIFEST}; point at a domain folder, such as other/domains/materials"
        )
    domain = load_domain(folder)
    target = project.domain(check_name(domain.name))
    with locked(project.root / "runs"):
        recover(target)
        if target.exists():
            raise SettingsError(
                f"{domain.name} is already here; run `gag domains remove {domain.name}` first"
            )
        _check_models(project, [domain])
        temporary = target.with_name(f".{target.name}.new")
        for name in (MANIFEST, *domain.files):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, temporary / name)
        temporary.rename(target)
    return domain.name


def remove_domain(project: Project, name: str) -> None:
    """Take a domain's folder away; its runs and data stay."""
    folder = project.domain(project.require(name))
    gone = folder.with_name(f".{folder.name}.gone")
    with locked(project.root / "runs"):
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def _check_models(project: Project, domains: list[Domain]) -> None:
    base = load_backbone(project.settings.base, project.root).facts
    expert = load_backbone(project.settings.expert, project.root)
    encoder = make_encoder(project, lambda: expert)
    for domain in domains:
        domain.facts.base.check("base", base, domain.name)
        domain.facts.expert.check("expert", expert.facts, domain.name)
        domain.bank().check(encoder.spec, domain.name)


def _row(domain: Domain) -> DomainRow:
    size = sum(path.stat().st_size for path in domain.folder.rglob("*") if path.is_file())
    facts = domain.facts
    return DomainRow(
        domain.name, facts.created, facts.base.model, facts.expert.model, facts.tuning,
        round(size / 2**20, 2), round(facts.scores["val_loss"], 4),
    )  # fmt: skip

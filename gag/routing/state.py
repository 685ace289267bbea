"""A project's router: its banks on disk, and the decision for their set, kept for all starts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError

from gag.errors import ArtifactError, GagError
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone, one_line
from gag.project.artifacts import MANIFEST, locked, read_manifest, writing
from gag.project.domain import (
    BANK,
    QUESTIONS,
    ROUTING_PART,
    STATISTICS,
    BankFacts,
    Domain,
    EncoderSpec,
    load_domain,
)
from gag.project.progress import say, say_once
from gag.project.project import Project
from gag.project.settings import GENERAL
from gag.project.tensors import load_tensors, save_tensors
from gag.routing.bank import StoredBank, check_encoder, load_bank
from gag.routing.building import load_questions
from gag.routing.calibration import restored
from gag.routing.encoders import make_encoder
from gag.routing.query_encoder import QueryEncoder
from gag.routing.router import Router, RouterState, settled

SUMS = "sums.safetensors"


def domain_bank(domain: Domain) -> StoredBank:
    """Open a domain's bank."""
    return load_bank(domain.folder, domain.facts.bank, domain.files)


def general_bank(project: Project) -> StoredBank:
    """Open the bank of general questions."""
    folder = project.require_general()
    content = read_manifest(folder, only=(BANK,))
    try:
        facts = BankFacts(**content["bank"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(
            f"{folder.name}/{MANIFEST} describes no bank; run `gag prototypes general` again"
        ) from error
    return load_bank(folder, facts, content["files"])


def project_encoder(project: Project, expert: Callable[[], Backbone] | None = None) -> QueryEncoder:
    """Make the project's query encoder.

    The expert backbone is loaded where it is the encoder and is not at hand.
    """
    return make_encoder(project, expert or (lambda: load_backbone(project.settings.expert, project.root)))


def open_domain(project: Project, name: str, encoder: EncoderSpec) -> Domain:
    """Read and check what routes of a domain: its description, and its bank by this query encoder."""
    domain = load_domain(project.domain(name), only=ROUTING_PART)
    check_encoder(domain_bank(domain), encoder, name)
    return domain


def twins(domains: Mapping[str, Domain]) -> dict[str, str]:
    """Say of each folder that holds the same domain as another one why it is refused.

    The folder of the domain's own name is kept, else the first.
    """
    first: dict[tuple[str, ...], str] = {}
    refused = {}
    for name, domain in sorted(domains.items(), key=lambda pair: pair[0] != pair[1].facts.name):
        same = (domain.facts.name, domain.facts.key, *sorted(domain.files.values()))
        owner = first.setdefault(same, name)
        if owner != name:
            refused[name] = (
                f"{name} is the same domain as {owner}, under another name; remove one of the folders"
            )
    return refused


def open_router(
    project: Project, domains: Mapping[str, Domain], encoder: QueryEncoder, anew: bool = False
) -> Router:
    """Make the router over the banks of domains, and keep what it decides.

    A domain whose bank cannot be read (any more), or whose statistics are harmed where they decide, is left
    out and named.

    Args:
        project: whose router it is.
        domains: what `open_domain` read; general's bank is added.
        encoder: what turns questions into vectors.
        anew: decide anew, whatever was kept.
    """
    settings, saved = project.settings.router, None if anew else load_state(project.router)
    router = _make_router(project, domains, encoder, saved)
    if router.state.warning:
        say_once(router.state.warning)
    if router.calibration and "alpha" in settings.model_fields_set:
        _compare(settings.alpha, router.calibration.alpha)
    if router.state is not saved and router.calibration:
        for note in router.calibration.notes:
            say(f"router: {note}")
        try:
            keep_state(project, router.state)
        except (ArtifactError, OSError) as error:  # the next start decides again; this one goes on
            say(f"what the router decided is not kept: {one_line(error)}")
    return router


def _make_router(
    project: Project,
    domains: Mapping[str, Domain],
    encoder: QueryEncoder,
    saved: RouterState | None,
    more_tries: int = 3,
) -> Router:
    settings = project.settings.router
    banks = {GENERAL: general_bank(project)} | {name: domain_bank(one) for name, one in domains.items()}
    decides = settled(banks, settings, saved) is None
    if decides:
        read_manifest(project.general, only=(STATISTICS,))
        for name, domain in domains.items():
            try:
                domain.check((STATISTICS,))
            except GagError as error:
                _leave_out(name, error)
                del banks[name]
    try:
        return Router(banks, encoder, settings, saved)
    except ArtifactError:  # a file went, or was written over, while it was read: whose is not whole now?
        faults = {name: fault for name, bank in banks.items() if (fault := _fault(bank, decides))}
        if GENERAL in faults or not more_tries:
            raise
    for name, fault in faults.items():
        _leave_out(name, fault)
    whole = {name: domain for name, domain in domains.items() if name in banks and name not in faults}
    return _make_router(project, whole, encoder, saved, more_tries - 1)


def _fault(bank: StoredBank, statistics: bool) -> ArtifactError | None:
    """Return what is wrong with a bank, if it cannot be read."""
    try:
        bank.check(statistics)
    except ArtifactError as error:
        return error
    return None


def load_router(project: Project, expert: Backbone | None = None, anew: bool = False) -> Router:
    """Load only what routing needs: the query encoder, and of each domain its bank.

    A domain that cannot be read, or has another encoder's bank, is left out and named. What is decided for
    the set that is here is kept, so that no start decides it again; `anew` decides whatever was kept.
    """
    encoder, domains = project_encoder(project, (lambda: expert) if expert else None), {}
    for name in project.present():
        try:
            domains[name] = open_domain(project, name, encoder.spec)
        except GagError as error:
            _leave_out(name, error)
    for name, reason in twins(domains).items():
        _leave_out(name, reason)
        del domains[name]
    for name, reason in project.strays().items():
        _leave_out(name, reason)
    return open_router(project, domains, encoder, anew)


def expertless_banks(project: Project, encoder: EncoderSpec | None = None) -> dict[str, StoredBank]:
    """Open the banks of domains in gag.yaml that have no expert: `gag prototypes` or an import made them.

    With an encoder, one that another made is left out and named, as is one that cannot be read.
    """
    found = {}
    for name in project.settings.domains.keys() - set(project.present()):
        folder = project.run(name, "prototypes")
        if not (folder / MANIFEST).is_file() or folder.with_name("adapt").exists():
            continue
        try:
            content = read_manifest(folder)
            bank = load_bank(folder, BankFacts(**content["bank"]), content["files"])
            if encoder:
                check_encoder(bank, encoder, name)
            found[name] = bank
        except (GagError, KeyError, TypeError, ValidationError) as error:
            _leave_out(name, one_line(error))
    return dict(sorted(found.items()))


def load_state(folder: Path) -> RouterState | None:
    """Read what was decided, if something was; a file that was edited or cut short is refused."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        content = read_manifest(folder)
        calibration = restored(content["calibration"])
        sums = load_tensors(folder / SUMS, mapped=True)
        return RouterState(dict(content["members"]), calibration, content["warning"], **sums)
    except (ArtifactError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ArtifactError(
            f"what the router decided cannot be read ({error}); run `gag router calibrate` again"
        ) from error


def keep_state(project: Project, state: RouterState) -> None:
    """Write what was decided, for the next start."""
    facts = {
        "members": state.members,
        "calibration": asdict(state.calibration) if state.calibration else None,
        "warning": state.warning,
    }
    tensors = {"total": state.total, "root": state.root}
    with locked(project.root / "runs" / "router"), writing(project.router, facts) as temporary:
        save_tensors(temporary / SUMS, {name: t for name, t in tensors.items() if t is not None})


def _leave_out(name: str, reason: object) -> None:
    say(f"domain {name} is left out of the router: {reason}")


def _compare(asked: float, kept: float) -> None:
    """Say so where gag.yaml asks for another risk than the kept calibration has."""
    if asked != kept:
        say(f"router.alpha is {asked:g}, the router was calibrated for {kept:g}; run `gag router calibrate`")


def near_questions(folder: Path, vector: torch.Tensor, count: int = 3) -> list[tuple[str, float]]:
    """Find the questions nearest to a vector [Dq] that a domain carries, with their cosines.

    None if it carries none.
    """
    return load_questions(folder).nearest(vector, count) if (folder / QUESTIONS).is_file() else []

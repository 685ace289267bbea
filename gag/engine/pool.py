"""The domains of a project while it runs: the folder is the truth, a domain is loaded when it is first asked.

A domain that fails is refused by name, and all others answer. The least recently asked ones leave memory when
more than a stated number is loaded.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gag.errors import ArtifactError, BusyError, GagError, RoutingError
from gag.models.experts import LoadedExperts
from gag.project.artifacts import SEEN
from gag.project.domain import DOMAIN, MODULE_PART, Domain, DomainFacts, EncoderSpec, ModelFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.progress import say
from gag.project.project import Project
from gag.project.settings import GENERAL, PromptSettings
from gag.projection.modules import domain_projector
from gag.projection.projector import Projector
from gag.routing.state import open_domain, twins

Signature = tuple[tuple[str, int, int], ...]  # names, sizes and times of a folder's own files


@dataclass(frozen=True)
class Module:
    """How a domain's expert is asked and read, and its projector."""

    expert: str  # its name among the experts: a revision has one of its own
    readout: ReadoutSettings
    common: Mapping[str, float]  # words that many of the expert's answers share
    projector: Projector
    prompts: PromptSettings


@dataclass(frozen=True)
class Entry:
    """A folder as it was found: the domain in it if its bank can route, and why it is refused."""

    signature: Signature
    domain: Domain | None
    refusal: str = ""
    whole: bool = False  # whether any of its files may mend it, so that all are looked at
    fault: str = ""  # why what lies there now did not replace the domain, which goes on as it was


class DomainPool:
    """The domains under a project's folder, loaded when they are asked.

    Args:
        project: whose domains they are.
        base: the base that they must have been built for.
        experts: where their experts are loaded into.
        encoder: the query encoder that their banks must have been made by.
        device: where projectors go.
    """

    def __init__(
        self,
        project: Project,
        base: ModelFacts,
        experts: LoadedExperts,
        encoder: EncoderSpec,
        device: torch.device,
    ):
        self._project, self._base, self._experts = project, base, experts
        self._encoder, self._device = encoder, device
        self._found: dict[str, Entry] = {}  # folder by folder
        self._entries: dict[str, Entry] = {}  # the same, one for each domain
        self._strays: set[str] = set()  # folders of no domain's name that were named
        self._loaded: OrderedDict[str, Module] = OrderedDict()  # least recently asked first
        self._gone: set[str] = set()  # experts that may still be in use
        self.leaving: set[str] = set()  # domains that are about to be removed: they are not seen any more
        self.refresh()

    @property
    def names(self) -> list[str]:
        """The domains that can be asked."""
        return [name for name, entry in self._entries.items() if not entry.refusal]

    @property
    def known(self) -> list[str]:
        """The domains whose folders are here, whether they can be asked or not."""
        return list(self._entries)

    @property
    def refused(self) -> dict[str, str]:
        """The folders that cannot be asked, each with its reason."""
        return {name: entry.refusal for name, entry in self._entries.items() if entry.refusal}

    @property
    def faults(self) -> dict[str, str]:
        """Why a folder's content is not what answers: it is refused, or the domain before goes on."""
        return {name: why for name, one in self._entries.items() if (why := one.refusal or one.fault)}

    @property
    def loaded(self) -> list[str]:
        """The domains in memory, the least recently asked first."""
        return list(self._loaded)

    def refresh(self) -> bool:
        """Look at the folder again; say whether domains came, went, changed, were mended or fell out."""
        return self.take(self.scan())

    def scan(self) -> dict[str, Entry]:
        """Look at the folder and change nothing: another thread may; `take` takes it up."""
        found = {}
        for name in self._project.present():
            if name in self.leaving:
                continue
            old, folder = self._found.get(name), self._project.domain(name)
            signature = _signature(folder, whole=old is not None and old.whole)
            if old and old.signature == signature:
                found[name] = old
                continue
            found[name] = new = self._open(name)
            if new.refusal and old and not old.refusal and name in self._loaded:
                found[name] = replace(old, signature=new.signature, whole=True, fault=new.refusal)
        return found

    def changed(self, found: Mapping[str, Entry]) -> set[str]:
        """Name the domains that a scan found other than they are; one that goes on as it was is none."""
        entries, before = self._one_each(found), self._entries
        names = {name for name in before.keys() | entries.keys() if before.get(name) != entries.get(name)}
        return {name for name in names if not (name in entries and entries[name].fault)}

    def take(self, found: Mapping[str, Entry]) -> bool:
        """Take up what a scan found -> whether anything changed."""
        before, changed = self._entries, self.changed(found)
        self._found = dict(found)
        self._entries = self._one_each(found)
        for name, entry in self._entries.items():
            old = before.get(name)
            if name in changed:
                self._forget(name)
            if entry.refusal and not (old and old.refusal == entry.refusal):
                say(f"domain {name} is refused, all others answer: {entry.refusal}")
            if entry.fault and not (old and old.fault == entry.fault):
                say(f"domain {name} goes on as it was, what lies in its folder is refused: {entry.fault}")
        for name in changed - self._entries.keys():
            self._forget(name)
        for name, reason in self._project.strays().items():
            if name not in self._strays:
                self._strays.add(name)
                say(f"domains/{name} is left out: {reason}")
        return bool(changed)

    def seen(self, domain: Domain) -> None:
        """Hash what a domain's module is made of now, so that its first question need not wait for that."""
        with suppress(GagError):  # whoever asks it is told
            domain.check(MODULE_PART)

    def watch(self, names: set[str]) -> None:
        """Look at every file of domains that were left out of the router: any may be what was wrong."""
        for name in names & self._entries.keys():
            signature = _signature(self._project.domain(name), whole=True)
            entry = replace(self._entries[name], signature=signature, whole=True)
            self._found[name] = self._entries[name] = entry

    def facts(self, name: str) -> DomainFacts:
        """Return a domain's description."""
        return self._domain(name).facts

    def domain(self, name: str) -> Domain:
        """Return a domain on disk.

        Raises:
            ArtifactError, RoutingError: it is refused, or not here.
        """
        return self._domain(name)

    def revision(self, name: str) -> str:
        """Name what a domain holds."""
        return self._domain(name).revision

    def routed(self) -> dict[str, Domain]:
        """Return the domains whose banks can route: a question of one that is refused is refused with it."""
        return routable(self._entries)

    def release(self, in_use: Collection[str]) -> list[str]:
        """Drop experts whose modules are gone and that nobody uses -> their names."""
        dropped = [name for name in self._gone if name not in in_use]
        for name in dropped:
            self._gone.remove(name)
            self._experts.forget(name)
        return dropped

    def module(self, name: str) -> Module:
        """Return a domain's module, loaded now if it is not yet.

        The least recently asked one may leave for it.

        Raises:
            ArtifactError: the domain is refused; the message names it and says why.
        """
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        domain = self._domain(name)
        try:
            domain.check(MODULE_PART)
            projector = domain_projector(domain)
            while len(self._loaded) >= self._project.settings.decoding.resident_domains:
                self._forget(next(iter(self._loaded)))
            expert = f"{name}@{domain.revision}"
            if expert in self._gone:
                self._gone.remove(expert)
            else:
                self._experts.load(expert, domain.expert)
        except BusyError:  # a server is away: the domain is as it was
            raise
        except GagError as error:
            self._refuse(name, error)
            raise
        facts = domain.facts
        projector = projector.to(self._device)
        self._loaded[name] = Module(expert, facts.readout, facts.common, projector, facts.prompts)
        return self._loaded[name]

    def _domain(self, name: str) -> Domain:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join([GENERAL, *self.names])
            raise RoutingError(
                f"no domain {name!r} here (present: {known}); run `gag build {name}` or `gag domains add`"
            )
        if entry.refusal or not entry.domain:
            raise ArtifactError(f"domain {name} is refused: {entry.refusal}")
        return entry.domain

    def _open(self, name: str) -> Entry:
        """Open a folder; one that fails is looked at again once its files are noted: it may be growing."""
        folder, (domain, refusal) = self._project.domain(name), self._read(name)
        if not refusal:
            return Entry(_signature(folder), domain)
        signature = _signature(folder, whole=True)
        return Entry(signature, *self._read(name), whole=True)

    def _read(self, name: str) -> tuple[Domain | None, str]:
        """Read and check a domain's description, what routes, and its models -> it, and why it is refused."""
        domain = None
        try:
            domain = open_domain(self._project, name, self._encoder)
            domain.facts.base.check("base", self._base, name)
            domain.facts.expert.check("expert", self._experts.facts, name)
        except GagError as error:
            return domain, str(error)
        return domain, ""

    def _one_each(self, found: Mapping[str, Entry]) -> dict[str, Entry]:
        """Refuse a second folder of one and the same domain."""
        second = twins(routable(found))
        return dict(found) | {name: Entry(found[name].signature, None, why) for name, why in second.items()}

    def _refuse(self, name: str, error: GagError) -> None:
        """Refuse a domain that was found whole enough to route."""
        signature = _signature(self._project.domain(name), whole=True)
        entry = Entry(signature, self._entries[name].domain, str(error), whole=True)
        self._found[name] = self._entries[name] = entry
        self._forget(name)

    def _forget(self, name: str) -> None:
        if module := self._loaded.pop(name, None):
            self._gone.add(module.expert)


def routable(entries: Mapping[str, Entry]) -> dict[str, Domain]:
    """Return the domains whose banks can route."""
    return {name: entry.domain for name, entry in entries.items() if entry.domain}


def _signature(folder: Path, whole: bool = False) -> Signature:
    """Describe a domain's manifest, or all of its folder's files: names, sizes and times."""
    try:
        files = [path for path in folder.rglob("*") if path.name != SEEN] if whole else [folder / DOMAIN]
        stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    except FileNotFoundError:  # it is not there yet, or any more
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))

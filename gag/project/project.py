"""A project: where it lies, its settings, and where things lie in it."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gag.errors import ArtifactError, RoutingError, SettingsError
from gag.project.inputs import DomainInputs, project_file, resolve
from gag.project.parsing import PROJECT_FILE, override, parse_settings, read_yaml
from gag.project.progress import say
from gag.project.settings import GENERAL, DomainSettings, ProjectSettings, check_name


@dataclass(frozen=True)
class Project:
    """A folder with gag.yaml, and where things lie in it."""

    root: Path
    settings: ProjectSettings
    variant: str = ""  # of evaluation.variants: its stages work in folders of their own

    @property
    def domains(self) -> Path:
        """The folder of plug-in domains."""
        return self.root / "domains"

    @property
    def general(self) -> Path:
        """The folder of the general route's bank."""
        return self.root / GENERAL

    @property
    def router(self) -> Path:
        """The folder of what the router decided for the set of domains that is here."""
        return self.root / "router"

    def domain(self, name: str) -> Path:
        """Return a domain's plug-in folder."""
        return self.domains / check_name(name)

    def run(self, name: str, stage: str) -> Path:
        """Return the working folder of a domain's stage; variants share the expert."""
        folder = self.root / "runs" / check_name(name)
        own = self.variant and not stage.startswith("adapt")
        return folder / "compare" / f"gag-{self.variant}" / stage if own else folder / stage

    def inputs(self, domain: str) -> DomainInputs:
        """Resolve once what a domain's stages are made from; a file that is missing or outside is refused."""
        run = partial(self.run, domain)
        return resolve(domain, self.described(domain), self.settings, self.root, run)

    def file(self, path: str) -> Path:
        """Resolve a data file of gag.yaml; it must exist inside the project."""
        return project_file(self.root, path)

    def under(self, variant: str) -> "Project":
        """Return the project under the settings of one of its variants."""
        chosen, content = self.settings.evaluation.variants[check_name(variant)], self.settings.model_dump()
        content |= {
            "readout": content["readout"] | chosen.readout,
            "align": content["align"] | chosen.align,
        }
        try:
            return Project(self.root, parse_settings(content), variant)
        except SettingsError as error:
            raise SettingsError(f"evaluation.variants.{variant}: {error}") from error

    def present(self) -> list[str]:
        """Return the domains that are present: the folders under domains/ that have a domain's name."""
        strays = self.strays()
        return [name for name in self._folders() if name not in strays]

    def strays(self) -> dict[str, str]:
        """Return the folders under domains/ whose names are no domain's, each with what to do."""
        found = {}
        for name in self._folders():
            try:
                check_name(name)
            except SettingsError as error:
                found[name] = f"{error}; rename the folder, or move it out of domains/"
        return found

    def _folders(self) -> list[str]:
        if not self.domains.is_dir():
            return []
        return sorted(
            path.name for path in self.domains.iterdir() if path.is_dir() and not path.name.startswith(".")
        )

    def require(self, name: str) -> str:
        """Return the name of a domain that is present, or of the general route."""
        if name != GENERAL and check_name(name) not in self.present():
            known = ", ".join([GENERAL, *self.present()])
            raise RoutingError(
                f"no domain {name!r} here (present: {known}); run `gag build {name}` or `gag domains add`"
            )
        return name

    def require_general(self) -> Path:
        """Return the folder of the general bank, which the router needs."""
        if not self.general.is_dir():
            raise ArtifactError(
                "the project has no general bank yet; run `gag build DOMAIN` or `gag prototypes general`"
            )
        return self.general

    def described(self, name: str) -> DomainSettings:
        """Return what gag.yaml says of a domain."""
        check_name(name)
        if name not in self.settings.domains:
            known = ", ".join(self.settings.domains) or "none"
            raise SettingsError(
                f"{PROJECT_FILE} describes no domain {name!r} (it has: {known}); add it under `domains:`"
            )
        return self.settings.domains[name]


def find_project(folder: str | Path | None = None) -> Path:
    """Find the project: the folder given (`~` is home), else GAG_PROJECT, else the nearest parent."""
    named = folder or os.environ.get("GAG_PROJECT") or None
    try:
        candidates = [Path(named).expanduser()] if named else [Path.cwd(), *Path.cwd().parents]
    except RuntimeError as error:  # `~name` of nobody
        raise SettingsError(f"{named} cannot be found ({error}); point --project at a project") from error
    for candidate in candidates:
        if (candidate / PROJECT_FILE).is_file():
            return candidate.resolve()
    where = str(named) if named else "this folder or above it"
    raise SettingsError(f"no {PROJECT_FILE} in {where}; run `gag init`, or point --project at a project")


def load_project(folder: str | Path | None = None, overrides: tuple[str, ...] = ()) -> Project:
    """Open a project: read its gag.yaml and lay `a.b=c` overrides over it.

    Args:
        folder: the project's folder, as text or path, `~` allowed; without one it is looked for
            (`find_project`).
        overrides: settings such as `align.epochs=3`, read as YAML.

    Raises:
        SettingsError: no gag.yaml there, or a setting in it is unknown or wrong; the message names the
            nearest one.

    A setting that was written and has no effect is named on stderr.

    Example:
        >>> project = load_project("~/my-project", ("decoding.max_new_tokens=64",))
    """
    root = find_project(folder)
    try:
        content = read_yaml((root / PROJECT_FILE).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{PROJECT_FILE} is not YAML: it is no UTF-8 text ({error.reason})") from error
    for text in overrides:
        override(content, text)
    settings = parse_settings(content)
    for line in settings.without_effect(content):
        say(f"{PROJECT_FILE}: {line}")
    project = Project(root, settings)
    for variant in settings.evaluation.variants:
        project.under(variant)  # a wrong setting of a variant is refused now, not when its turn comes
    return project

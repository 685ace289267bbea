"""A project: where it lies, its gag.yaml with `--set a.b=c` over it, and where things lie in it."""

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gag.errors import RoutingError, SettingsError
from gag.project.settings import GENERAL, PRESETS, DomainSettings, ProjectSettings, check_name

PROJECT_FILE = "gag.yaml"
_EXAMPLE = """\
# A GAG project. `gag build {domain}` reads this file; unknown settings are refused.
base: {{model: {base}}}       # frozen: not one weight is ever changed
expert: {{model: {expert}}}   # one resident backbone, an adapter per domain; also the router's query encoder

# general: {{questions: data/general/questions.jsonl}}   # default: a list that comes with the package

domains:
  {domain}:
    # One JSON object per line: {{"question": "...", "answer": "..."}}; also "id", "group", and Alpaca's keys.
    train: data/{domain}/train.jsonl       # teaches the expert and trains the projector
    # adapt: data/{domain}/adapt.jsonl     # or: rows for the expert alone
    # align: data/{domain}/align.jsonl     # and rows for the projector alone
    # test: data/{domain}/test.jsonl       # may share no group with align
    # corpus: data/{domain}/corpus.jsonl   # documents, {{"text": "..."}} per line: the expert reads them first
    prompts:
      expert: You are an expert of this field. Write the background knowledge needed to answer the question.
      answer: Answer the question with the help of the knowledge given.

preset: {preset}   # the paper's: v1 injects one vector, v4 several; ours: vocabulary, where base and expert share their tokens
# What one usually changes; what is not named here follows the preset:
adapt: {{tuning: lora, rank: 32, learning_rate: 2.0e-4, epochs: 8, batch_size: 128, micro_batch_size: 16}}
readout: {{max_new_tokens: {budget}, batch_tokens: 65536}}
align: {{learning_rate: {rate}, batch_size: 32, micro_batch_size: 32}}
decoding: {{max_new_tokens: 256}}
"""


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
    def calibration(self) -> Path:
        """What `gag router calibrate` decided."""
        return self.root / "router.json"

    def domain(self, name: str) -> Path:
        """Return a domain's plug-in folder."""
        return self.domains / check_name(name)

    def run(self, name: str, stage: str) -> Path:
        """Return the working folder of a domain's stage; variants share the expert."""
        folder = self.root / "runs" / check_name(name)
        own = self.variant and not stage.startswith("adapt")
        return folder / "compare" / f"gag-{self.variant}" / stage if own else folder / stage

    def under(self, variant: str) -> "Project":
        """Return the project under the settings of one of its variants."""
        chosen, content = self.settings.evaluation.variants[check_name(variant)], self.settings.model_dump()
        content |= {"readout": content["readout"] | chosen.readout, "align": content["align"] | chosen.align}
        return Project(self.root, parse_settings(content), variant)

    def file(self, path: str) -> Path:
        """Resolve a data file of gag.yaml; it must exist inside the project."""
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root.resolve()):
            raise SettingsError(
                f"{path} leads out of the project; put the file under the folder of {PROJECT_FILE}"
            )
        if not full.is_file():
            raise SettingsError(f"{path} does not exist in the project; {PROJECT_FILE} names it")
        return full

    def present(self) -> list[str]:
        """Return the domains that are present: the folders under domains/."""
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

    def described(self, name: str) -> DomainSettings:
        """Return what gag.yaml says of a domain."""
        check_name(name)
        if name not in self.settings.domains:
            known = ", ".join(self.settings.domains) or "none"
            raise SettingsError(
                f"{PROJECT_FILE} describes no domain {name!r} (it has: {known}); add it under `domains:`"
            )
        return self.settings.domains[name]


def find_project(folder: Path | None = None) -> Path:
    """Find the project: the folder given, else GAG_PROJECT, else the nearest parent that holds gag.yaml."""
    named = folder or (Path(os.environ["GAG_PROJECT"]) if os.environ.get("GAG_PROJECT") else None)
    candidates = [named] if named else [Path.cwd(), *Path.cwd().parents]
    for candidate in candidates:
        if (candidate / PROJECT_FILE).is_file():
            return candidate.resolve()
    where = str(named) if named else "this folder or above it"
    raise SettingsError(f"no {PROJECT_FILE} in {where}; run `gag init`, or point --project at a project")


def load_project(folder: Path | None = None, overrides: tuple[str, ...] = ()) -> Project:
    """Read gag.yaml, with `a.b=c` overrides laid over it."""
    root = find_project(folder)
    try:
        content = yaml.safe_load((root / PROJECT_FILE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{PROJECT_FILE} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{PROJECT_FILE} must hold settings (key: value); `gag init` writes an example")
    for override in overrides:
        _override(content, override)
    return Project(root, parse_settings(content))


def parse_settings(content: dict[str, Any]) -> ProjectSettings:
    """Validate the content of gag.yaml; a refusal names the setting and the nearest valid name."""
    preset = content.get("preset", "v1")
    try:
        return ProjectSettings.model_validate(
            _under(content, PRESETS.get(preset, {}) if isinstance(preset, str) else {})
        )
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors()[:3])) from error


def _under(content: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """Lay a preset's groups of settings under those of gag.yaml."""
    groups = {
        name: {**group, **content[name]} if isinstance(content.get(name), dict) else group
        for name, group in preset.items()
    }
    return content | {
        name: group for name, group in groups.items() if isinstance(content.get(name, {}), dict)
    }


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"setting {path}: {reason}" if path else reason
    names = sorted(_fields(ProjectSettings, problem["loc"][:-1]))
    near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
    return f"unknown setting {path}; " + (
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    )


def _fields(model: Any, path: tuple) -> set[str]:
    for part in path:
        if part in model.model_fields:
            annotation = model.model_fields[part].annotation
            model = DomainSettings if part == "domains" else annotation
    return set(model.model_fields)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"--set {override!r} is not of the form a.b=c")
    *path, last = key.strip().split(".")
    for part in path:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise SettingsError(f"--set {override!r}: {part} is a value, not a group of settings")
    try:
        content[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"--set {override!r}: {value!r} is not YAML") from error


def write_example(folder: Path, domain: str, base: str, expert: str, preset: str = "v1") -> Path:
    """Write an example gag.yaml and the folder for a first domain's data; an existing project is left alone."""
    path = folder / PROJECT_FILE
    if path.exists():
        raise SettingsError(f"{path} is already there; edit it, or choose another folder")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; choose another folder")
    models = {"base": json.dumps(base), "expert": json.dumps(expert)}
    chosen = parse_settings({"preset": preset, "base": {"model": base}, "expert": {"model": expert}})
    content = _EXAMPLE.format(
        domain=check_name(domain), **models, preset=preset,
        budget=chosen.readout.max_new_tokens, rate=f"{chosen.align.learning_rate:.1e}",
    )  # fmt: skip
    (folder / "data" / domain).mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path

"""The settings of a project: gag.yaml, and `--set a.b=c` over it. Frozen, and an unknown key is refused."""

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gag.errors import RoutingError, SettingsError

PROJECT_FILE = "gag.yaml"
GENERAL = "general"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
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
    prompts:
      expert: You are an expert of this field. Write the background knowledge needed to answer the question.
      answer: Answer the question with the help of the knowledge given.

# The paper's first version is the default; what one usually changes:
adapt: {{tuning: lora, rank: 32, learning_rate: 2.0e-4, epochs: 8, batch_size: 128, micro_batch_size: 16}}
readout: {{layers: [-4], pooling: last, max_new_tokens: 1024, batch_size: 64}}
align: {{learning_rate: 1.0e-3, epochs: 5, batch_size: 32}}
decoding: {{max_new_tokens: 256}}
"""


class Settings(BaseModel):
    """The base of every settings model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Settings):
    """A causal language model and how to load it."""

    model: str = Field(description="Hugging Face id, or a folder (relative to gag.yaml)")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: as stored; a CPU: float32"
    )
    device: str = Field(default="auto", description="auto: CUDA, then MPS, then CPU")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(default="sdpa", description="attention implementation")


class PromptSettings(Settings):
    """The words around a domain's questions, the same in tuning, readout and serving."""

    expert: str = Field(
        default="You are an expert of this field. Write the background knowledge needed to answer the question.",
        min_length=1, description="system prompt of the expert")  # fmt: skip
    answer: str = Field(
        default="Answer the question with the help of the knowledge given.",
        min_length=1, description="instruction to the base, before question and knowledge")  # fmt: skip


class DomainSettings(Settings):
    """One domain's data files (relative to gag.yaml) and prompts."""

    train: str | None = Field(default=None, description="rows for both the expert and the projector")
    adapt: str | None = Field(default=None, description="rows that teach the expert (default: train)")
    align: str | None = Field(default=None, description="rows that train the projector (default: train)")
    val: str | None = Field(default=None, description="rows that choose the best projector (default: a tenth of align)")
    test: str | None = Field(default=None, description="rows that nothing else may share a group with")
    corpus: str | None = Field(default=None, description="passages of the domain, one JSON object with `text` per line")
    prompts: PromptSettings = PromptSettings()

    def file(self, role: Literal["adapt", "align"]) -> str | None:
        """Return the file of a role, or the shared train file."""
        return getattr(self, role) or self.train


class AdaptSettings(Settings):
    """Stage I: how a domain's expert is tuned (paper: full tuning, 5e-6, 8 epochs, batch 128)."""

    tuning: Literal["lora", "full"] = Field(default="lora", description="an adapter over the shared backbone, or all weights")
    rank: int = Field(default=32, ge=1, description="LoRA rank")
    learning_rate: float = Field(default=2e-4, gt=0, description="peak rate; full tuning wants about 5e-6")
    epochs: float = Field(default=8, gt=0)
    batch_size: int = Field(default=128, ge=1, description="rows per optimiser step")
    micro_batch_size: int = Field(default=16, ge=1, description="rows per forward pass")
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=2048, ge=8, description="longest row, prompt and answer together")
    seed: int = Field(default=980406, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _whole_steps(self) -> "AdaptSettings":
        if self.batch_size > self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class ReadoutSettings(Settings):
    """What is read from the expert: how much it writes, which layers, how they are pooled."""

    layers: tuple[int, ...] = Field(default=(-4,), min_length=1, description="into hidden_states; -1 is after the final norm")
    pooling: Literal["last", "mean"] = Field(default="last", description="over the generated content tokens")
    max_new_tokens: int = Field(default=1024, ge=0, description="the expert's budget; 0 reads the prompt's last token")
    batch_size: int = Field(default=64, ge=1, description="questions decoded together")


class AlignSettings(Settings):
    """Stage II: how a projector is trained (paper: 6e-3, 5 epochs, batch 32)."""

    start: Literal["ridge", "random"] = Field(default="ridge", description="closed form, towards the answers' embeddings")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of the fp32 projector")
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=32, ge=1)
    warmup: float = Field(default=0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0, description="readout noise in training, in standard deviations of each feature")
    seed: int = Field(default=980406, ge=0, lt=2**32)


class RouterSettings(Settings):
    """PPR: the training-free prototype router."""

    centres: int = Field(default=32, ge=1, description="k-means centres per domain, at most as many as questions")
    max_questions: int = Field(default=10_000, ge=1, description="questions of a domain that its bank is made from")
    max_tokens: int = Field(default=256, ge=1, description="a question's tokens that the encoder reads")
    margin: float = Field(default=0.0, ge=0, description="how far a domain's score must lie above general's")
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=980406, ge=0, lt=2**32)


class GeneralSettings(Settings):
    """The general route's own questions."""

    questions: str | None = Field(default=None, description="JSONL of questions (default: the list in the package)")


class DecodingSettings(Settings):
    """How the base writes an answer; the same on every route."""

    max_new_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=32, ge=1, description="questions answered together")


class ProjectSettings(Settings):
    """Everything in gag.yaml."""

    base: ModelSettings
    expert: ModelSettings
    general: GeneralSettings = GeneralSettings()
    router: RouterSettings = RouterSettings()
    adapt: AdaptSettings = AdaptSettings()
    readout: ReadoutSettings = ReadoutSettings()
    align: AlignSettings = AlignSettings()
    decoding: DecodingSettings = DecodingSettings()
    domains: dict[str, DomainSettings] = {}

    @field_validator("domains")
    @classmethod
    def _names(cls, domains: dict[str, DomainSettings]) -> dict[str, DomainSettings]:
        for name in domains:
            check_name(name)
        return domains


@dataclass(frozen=True)
class Project:
    """A folder with gag.yaml, and where things lie in it."""

    root: Path
    settings: ProjectSettings

    @property
    def domains(self) -> Path:
        """The folder of plug-in domains."""
        return self.root / "domains"

    @property
    def general(self) -> Path:
        """The folder of the general route's bank."""
        return self.root / GENERAL

    def domain(self, name: str) -> Path:
        """Return a domain's plug-in folder."""
        return self.domains / check_name(name)

    def run(self, name: str, stage: str) -> Path:
        """Return the working folder of a domain's stage."""
        return self.root / "runs" / check_name(name) / stage

    def file(self, path: str) -> Path:
        """Resolve a data file of gag.yaml; it must exist inside the project."""
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root.resolve()):
            raise SettingsError(f"{path} leads out of the project; put the file under the folder of {PROJECT_FILE}")
        if not full.is_file():
            raise SettingsError(f"{path} does not exist in the project; {PROJECT_FILE} names it")
        return full

    def present(self) -> list[str]:
        """Return the domains that are present: the folders under domains/."""
        if not self.domains.is_dir():
            return []
        return sorted(path.name for path in self.domains.iterdir() if path.is_dir() and not path.name.startswith("."))

    def require(self, name: str) -> str:
        """Return the name of a domain that is present, or of the general route."""
        if name != GENERAL and check_name(name) not in self.present():
            known = ", ".join([GENERAL, *self.present()])
            raise RoutingError(f"no domain {name!r} here (present: {known}); run `gag build {name}` or `gag domains add`")
        return name

    def described(self, name: str) -> DomainSettings:
        """Return what gag.yaml says of a domain."""
        check_name(name)
        if name not in self.settings.domains:
            known = ", ".join(self.settings.domains) or "none"
            raise SettingsError(f"{PROJECT_FILE} describes no domain {name!r} (it has: {known}); add it under `domains:`")
        return self.settings.domains[name]


def check_name(name: str) -> str:
    """Return a domain's name if it is safe as a folder name and not `general`."""
    if name == GENERAL:
        raise SettingsError("no domain may be called general: that is the base's own route; choose another name")
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot name a domain; use lower-case letters, digits, - and _, at most 64")
    return name


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
    try:
        return ProjectSettings.model_validate(content)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors()[:3])) from error


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"setting {path}: {problem['msg']}"
    names = sorted(_fields(ProjectSettings, problem["loc"][:-1]))
    near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
    return f"unknown setting {path}; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}")


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


def write_example(folder: Path, domain: str, base: str, expert: str) -> Path:
    """Write an example gag.yaml and the folder for a first domain's data; an existing project is left alone."""
    path = folder / PROJECT_FILE
    if path.exists():
        raise SettingsError(f"{path} is already there; edit it, or choose another folder")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; choose another folder")
    content = _EXAMPLE.format(domain=check_name(domain), base=json.dumps(base), expert=json.dumps(expert))
    (folder / "data" / domain).mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path

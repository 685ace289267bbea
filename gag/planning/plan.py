"""Plan a domain's run: does each stage fit, how long does it take, and if it does not fit, what to change.

Models are built from their configs without storage, and each stage's heaviest batch runs dry on them: on
tensors that have shapes but no values. A meter counts the bytes that live at a time, and the operations.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gag.errors import SettingsError
from gag.models.loading import one_line
from gag.planning.alignment import align
from gag.planning.limits import check_lengths, check_models
from gag.planning.machine import Machine, choose_machine
from gag.planning.models import ModelSize
from gag.planning.reading import ask, prototypes, readouts
from gag.planning.stages import Stage
from gag.planning.table import in_bytes, in_seconds, model_line, stage_table, wrapped
from gag.planning.tuning import adapt, corpus
from gag.planning.workload import Workload, read_workload
from gag.project.project import Project
from gag.project.settings import ProjectSettings

RUNTIME = {"cuda": 800_000_000, "cpu": 50_000_000}  # bytes that the device's own libraries take at first use

_ERRORS = (  # what a model's code may raise where its tensors have no values
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A whole run: sizes in bytes, times in seconds."""

    domain: str
    machine: Machine
    models: dict[str, ModelSize]  # by their role: base, expert
    stages: list[Stage]
    fits: bool
    verdict: str

    def lines(self) -> list[str]:
        """Return the plan as a table for a terminal, at most 110 columns wide, and the verdict."""
        devices = f"{self.machine.count} x {in_bytes(self.machine.memory)}"
        return [
            *wrapped(f"{self.domain} on {devices}; {self.machine.assumed}"),
            *(model_line(role, model) for role, model in self.models.items()),
            "",
            *stage_table(self.stages),
            "",
            *wrapped(self.verdict),
        ]


@dataclass(frozen=True)
class Change:
    """A setting with another value, named as on the command line: `adapt.rank`."""

    key: str
    value: int | str

    def of(self, settings: ProjectSettings) -> int | str:
        """Return the value that the setting has now."""
        group, name = self.key.split(".")
        return getattr(getattr(settings, group), name)

    def on(self, settings: ProjectSettings) -> ProjectSettings:
        """Return the settings with this value."""
        group, name = self.key.split(".")
        changed = getattr(settings, group).model_copy(update={name: self.value})
        return settings.model_copy(update={group: changed})


@dataclass(frozen=True)
class StageKind:
    """How a stage is planned, and what makes it smaller."""

    plan: Callable[[Workload], Stage]
    batch: str  # the setting that bounds its batch
    ladder: tuple[tuple[Change, ...], ...] = (
        (),
    )  # what else may change, rung by rung, where it does not fit


_RECOMPUTE = Change("adapt.gradient_checkpointing", True)
_TUNING_LADDER = ((), (_RECOMPUTE,), (_RECOMPUTE, Change("adapt.tuning", "lora")))
STAGES = {
    "corpus": StageKind(corpus, "corpus.micro_batch_size", _TUNING_LADDER),
    "adapt": StageKind(adapt, "adapt.micro_batch_size", _TUNING_LADDER),
    "readouts": StageKind(readouts, "readout.batch_tokens"),
    "align": StageKind(align, "align.batch_tokens"),
    "prototypes": StageKind(prototypes, "router.batch_size"),
    "ask": StageKind(ask, "decoding.batch_size"),
}


def plan(project: Project, domain: str, gpus: str | None = None) -> Plan:
    """Plan a domain's run on devices like "8x80GB", or on this machine.

    Only configs, tokenizers and the domain's rows are read. Raises SettingsError for devices of another form
    and for models or settings that cannot be planned, and DataError for faulty rows.
    """
    work = read_workload(project, domain, choose_machine(gpus))
    inputs = project.inputs(domain)
    check_models(inputs.settings, work.base, work.expert)
    check_lengths(inputs, work.base, work.expert, work.align, work.adapt)
    kinds = [kind for name, kind in STAGES.items() if name != "corpus" or work.corpus_tokens]
    stages = [_plan_stage(work, kind) for kind in kinds]
    cures = [f"{s.name} needs {in_bytes(s.peak)} a device: {s.cure}." for s in stages if s.cure]
    sizes = {"base": work.base.size, "expert": work.expert.size}
    return Plan(domain, work.machine, sizes, stages, not cures, " ".join(cures) or _everything_fits(stages))


def _everything_fits(stages: list[Stage]) -> str:
    seconds = sum(stage.seconds for stage in stages if stage.name != "ask")
    disk = sum(sum(stage.disk.values()) for stage in stages)
    return f"Everything fits: about {in_seconds(seconds)} in all, and up to {in_bytes(disk)} on disk."


def _plan_stage(work: Workload, kind: StageKind) -> Stage:
    """Plan a stage, and where it does not fit, find its cure."""
    try:
        stage = kind.plan(work)
    except _ERRORS as error:
        raise SettingsError(
            f"{work.base.name} and {work.expert.name} cannot be planned: {one_line(error)}; `gag build` "
            "tries the models themselves before anything is spent"
        ) from error
    stage = replace(stage, peak=stage.peak + RUNTIME[work.machine.kind])
    return stage if stage.peak <= work.machine.memory else replace(stage, cure=_find_cure(work, kind))


def _find_cure(work: Workload, kind: StageKind) -> str:
    """Halve a stage's batch until it fits; where no batch does, climb the stage's ladder and halve again."""
    memory, smallest_peaks = work.machine.memory, []
    for rung in _useful_rungs(work.settings, kind):
        tries = [(*rung, Change(kind.batch, size)) for size in _halves(work.settings, kind.batch)]
        smallest_peaks.append(_peak_under(work, kind, tries[-1]))
        if smallest_peaks[-1] <= memory:
            found = next(changes for changes in tries if _peak_under(work, kind, changes) <= memory)
            return _advice(work.settings, found)
    return f"no setting is enough, use devices of {math.ceil(min(smallest_peaks) / 1e9)} GB or more"


def _useful_rungs(settings: ProjectSettings, kind: StageKind) -> list[tuple[Change, ...]]:
    """Return the rungs of a stage's ladder, without those that change nothing more in these settings."""
    rungs, seen = [], []
    for rung in kind.ladder:
        changed = _under(settings, rung)
        if changed not in seen:
            rungs.append(rung)
        seen.append(changed)
    return rungs


def _halves(settings: ProjectSettings, key: str) -> list[int]:
    """Return a batch setting's value and its halves; of a micro-batch, those that divide the batch."""
    group, name = key.split(".")
    bounds = getattr(settings, group)
    value = getattr(bounds, name)
    halves = [value >> halvings for halvings in range(value.bit_length())]
    if name != "micro_batch_size":
        return halves
    return [size for size in halves if bounds.batch_size <= size or bounds.batch_size % size == 0]


def _peak_under(work: Workload, kind: StageKind, changes: tuple[Change, ...]) -> int:
    """Return the stage's peak bytes under changed settings."""
    changed = replace(work, settings=_under(work.settings, changes))
    return kind.plan(changed).peak + RUNTIME[work.machine.kind]


def _under(settings: ProjectSettings, changes: tuple[Change, ...]) -> ProjectSettings:
    for change in changes:
        settings = change.on(settings)
    return settings


def _advice(settings: ProjectSettings, changes: tuple[Change, ...]) -> str:
    """Name the changes as they are set on the command line, without those that are no change."""
    news = [change for change in changes if change.value != change.of(settings)]
    return "set " + ", ".join(f"{change.key}={json.dumps(change.value)}" for change in news)

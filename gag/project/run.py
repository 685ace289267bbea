"""An unfinished training run on disk: its log, its newest complete checkpoints, and going on after a kill."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gag.errors import ArtifactError, MismatchError
from gag.project import distributed
from gag.project.artifacts import is_current, read_manifest, write_json, write_text, writing
from gag.project.keys import stage_key
from gag.project.rows import append_row
from gag.project.tensors import load_tensors, save_tensors


class Tracker(Protocol):
    """Where the rows of a log also go: Weights & Biases, trackio, TensorBoard."""

    def track(self, row: dict[str, Any], part: str = "") -> None:
        """Send a row with its `step`; a part of the run counts its own steps."""
        ...

    def finish(self) -> None:
        """End the run there, so that the next one is another."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def is_done(folder: Path, key: str, unfinished: Path) -> bool:
    """Say whether a stage's result stands; what a kill left of its run just after that is cleared."""
    done = distributed.broadcast(lambda: is_current(folder, key))
    if done and distributed.rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    return done


class Run:
    """An unfinished training run: a folder with the log and the newest complete checkpoints.

    The first process writes.

    Running the same command again goes on from the newest checkpoint; one with other inputs is refused.
    """

    KEPT = 2

    def __init__(self, folder: Path, inputs: dict[str, Any], tracker: Tracker | None = None):
        self.folder = folder
        self._tracker = tracker
        self._key = stage_key(**inputs)
        self._saved = time.monotonic()
        distributed.barrier()
        if distributed.rank() == 0:
            self._open(inputs)
        distributed.barrier()

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return self.folder / "log.jsonl"

    def newest(self) -> Checkpoint | None:
        """Load the newest complete checkpoint; a half-written one is stepped over."""
        for folder in reversed(self._steps()):
            if is_current(folder, self._key):
                facts = read_manifest(folder)
                cut_log(self.log, facts["step"])
                return Checkpoint(facts["step"], load_tensors(folder / "state.safetensors"), facts["state"])
        cut_log(self.log, -1)
        return None

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, its manifest last, and drop all but the newest two complete ones."""
        if distributed.rank() == 0:
            with writing(
                self.folder / f"step-{step:08d}", {"key": self._key, "step": step, "state": state}
            ) as temporary:
                save_tensors(temporary / "state.safetensors", tensors)
            for old in self._steps()[: -self.KEPT]:
                shutil.rmtree(old)
        self.saved()
        distributed.barrier()

    def report(self, row: dict[str, Any], log: Path | None = None) -> None:
        """Append a row with its `step` to the log, or to another one, and send it to the tracker."""
        if distributed.rank() == 0:
            append_row(log or self.log, row)
            if self._tracker:
                self._tracker.track(row, log.name.partition(".")[0] if log else "")

    def due(self, minutes: float) -> bool:
        """Say whether so many minutes have passed since the last checkpoint.

        The first process decides for all.
        """
        return distributed.broadcast(lambda: time.monotonic() - self._saved >= 60 * minutes)

    def saved(self) -> None:
        """Begin to count the minutes to the next checkpoint."""
        self._saved = time.monotonic()

    def close(self) -> None:
        """Clear the run once its result stands elsewhere."""
        if self._tracker:
            self._tracker.finish()
        if distributed.rank() == 0:
            shutil.rmtree(self.folder)
        distributed.barrier()

    def _open(self, inputs: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        described, plain = self.folder / "inputs.json", json.loads(json.dumps(inputs, default=str))
        if described.is_file():
            changed = _differences(_read(described), plain)
            if changed:
                raise MismatchError(
                    f"runs/{self.folder.parent.name}/{self.folder.name} holds an unfinished run with "
                    "other inputs "
                    f"({'; '.join(changed[:3])}); set them back to go on with it, or remove that "
                    "folder to start anew"
                )
        write_json(described, plain)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _read(described: Path) -> Any:
    try:
        return json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        folder = f"runs/{described.parent.parent.name}/{described.parent.name}"
        raise ArtifactError(
            f"{folder}/{described.name} cannot be read; remove {folder} to start anew"
        ) from error


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Name what differs between two descriptions: path, there, here."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for k in sorted({*old, *new})
            for line in _differences(old.get(k), new.get(k), f"{path}.{k}".strip("."))
        ]
    return [] if old == new else [f"{path}: {str(old)[:40]} there, {str(new)[:40]} here"]


def cut_log(path: Path, step: int) -> None:
    """Drop what was logged after a checkpoint's step, and a line that a kill cut short.

    It is logged again.
    """
    if distributed.rank() == 0 and path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= step))

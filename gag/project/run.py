"""What training verbs share: the step schedule, a key that names a stage's inputs, and a run that goes on after a kill."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gag.errors import ArtifactError, MismatchError
from gag.project import distributed
from gag.project.artifacts import is_current, load_tensors, read_manifest, save_tensors, write_json, writing
from gag.project.rows import digest
from gag.project.settings import ModelSettings
from gag.training.tracking import tracker


def linear_schedule(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the learning-rate factor of a step: up over the warm-up share, then straight down to 0."""
    rise = max(1, math.ceil(warmup * steps))
    return lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def stage_key(**inputs: Any) -> str:
    """Name what a stage is made from; an output with another key is made again."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def model_key(settings: ModelSettings, root: Path) -> dict[str, Any]:
    """Name a model without loading it: id and revision, or a hash of each file of a folder (of weights, of samples)."""
    folder = root / settings.model
    if not folder.is_dir():
        return {"model": settings.model, "revision": settings.revision}
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json", ".jinja"))
    return {path.name: _sampled(path) if path.suffix == ".safetensors" else digest(path) for path in files}


def _sampled(path: Path, chunk: int = 2**20, chunks: int = 16) -> str:
    """Hash a large file's size and evenly spaced chunks of it."""
    size = path.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in sorted({i * max(0, size - chunk) // (chunks - 1) for i in range(chunks)}):
            file.seek(start)
            sha.update(file.read(chunk))
    return sha.hexdigest()


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
    """An unfinished training run: a folder with the log and the newest complete checkpoints. The first process writes.

    Running the same command again goes on from the newest checkpoint; one with other inputs is refused.
    """

    KEPT = 2

    def __init__(self, folder: Path, inputs: dict[str, Any], tracking: str = "none"):
        self.folder = folder
        name = f"{folder.parent.name}-{folder.name.partition('.')[0]}"
        self._track = tracker(tracking, name, folder.parent / "tensorboard")
        self._key = stage_key(**inputs)
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
        distributed.barrier()

    def report(self, row: dict[str, Any], log: Path | None = None) -> None:
        """Append a row with its `step` to the log, or to another one, and send it to the tracker."""
        if distributed.rank() == 0:
            append_log(log or self.log, row)
            self._track(row)

    def close(self) -> None:
        """Clear the run once its result stands elsewhere."""
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
                    f"runs/{self.folder.parent.name}/{self.folder.name} holds an unfinished run with other inputs "
                    f"({'; '.join(changed[:3])}); set them back to go on with it, or remove that folder to start anew"
                )
        fresh = described.with_suffix(".new")
        write_json(fresh, plain)
        fresh.rename(described)

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


def append_log(path: Path, row: dict[str, Any]) -> None:
    """Append one row to a JSONL log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Drop what was logged after a checkpoint's step, and a line that a kill cut short: it is going to be logged again."""
    if distributed.rank() == 0 and path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")

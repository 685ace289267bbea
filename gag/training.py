"""What training verbs share: the step schedule, the log of a run, and a key that names a stage's inputs."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gag.config import ModelSettings
from gag.records import digest


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


def append_log(path: Path, row: dict[str, Any]) -> None:
    """Append one row to a JSONL log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")

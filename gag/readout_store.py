"""A split's readouts on disk: parts of slots with their texts beside, resumed part by part, closed by a manifest."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gag.artifacts import MANIFEST, SCHEMA, load_tensors, read_manifest, save_tensors, write_json
from gag.errors import ArtifactError
from gag.readout import Readout
from gag.records import Example, digest, read_rows, write_rows

PART_SIZE = 512
_KEY = "key.json"


@dataclass(frozen=True)
class StoredReadouts:
    """A finished store in memory."""

    ids: list[str]
    slots: torch.Tensor  # [N, S, L, De]
    facts: dict[str, Any]


def write_store(
    folder: Path,
    key: str,
    facts: dict[str, Any],
    examples: list[Example],
    read: Callable[[list[str]], Readout],
    advance: Callable[[int], None],
    part_size: int = PART_SIZE,
) -> None:
    """Read every example and write whole parts; parts of the same key that are already there are kept."""
    _open(folder, key)
    for number, start in enumerate(range(0, len(examples), part_size)):
        chosen = examples[start : start + part_size]
        part = folder / f"part-{number:05d}.safetensors"
        if not part.is_file():
            _write_part(part, chosen, read([e.question for e in chosen]))
        advance(len(chosen))
    files = {path.name: digest(path) for path in sorted(folder.glob("part-*")) if path.suffix in (".safetensors", ".jsonl")}
    closing = folder / f".{MANIFEST}"
    write_json(closing, {"schema": SCHEMA, "key": key, **facts, "rows": len(examples), "files": files})
    closing.rename(folder / MANIFEST)


def read_store(folder: Path, key: str | None = None) -> StoredReadouts:
    """Load a finished store; with a key, refuse one that was made from other inputs."""
    facts = read_manifest(folder)
    if key is not None and facts.get("key") != key:
        raise ArtifactError(f"the readouts in {folder.name} were made from other inputs; run `gag readouts` again")
    parts = sorted(folder.glob("part-*.safetensors"))
    rows = [row for part in parts for _, row in read_rows(part.with_suffix(".jsonl"))]
    slots = torch.cat([load_tensors(part)["slots"] for part in parts])
    if len(rows) != len(slots):
        raise ArtifactError(f"{folder.name} holds {len(slots)} readouts for {len(rows)} rows; run `gag readouts` again")
    return StoredReadouts([row["id"] for row in rows], slots, facts)


def _open(folder: Path, key: str) -> None:
    """Start or go on: what was made from other inputs is cleared."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _KEY
    (folder / MANIFEST).unlink(missing_ok=True)
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != {"key": key}:
        marker.unlink(missing_ok=True)
        for path in folder.iterdir():
            path.unlink()
    fresh = folder / f".{_KEY}"
    write_json(fresh, {"key": key})
    fresh.rename(marker)


def _write_part(part: Path, examples: list[Example], readout: Readout) -> None:
    """Write texts first and the tensor file last, by rename: a part counts once its tensor file stands."""
    rows = [
        {"id": e.id, "question": e.question, "text": text, "empty": empty}
        for e, text, empty in zip(examples, readout.texts, readout.empty, strict=True)
    ]
    write_rows(part.with_suffix(".jsonl"), rows)
    temporary = part.with_suffix(".new")
    save_tensors(temporary, {"slots": readout.slots})
    temporary.rename(part)

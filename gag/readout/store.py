"""A split's readouts on disk: parts of slots with their texts beside, resumed part by part, closed by a manifest.

Parts are of a fixed number of rows, so several processes or cluster jobs (shards) can each write some of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gag.errors import ArtifactError
from gag.project.artifacts import MANIFEST, SCHEMA, load_tensors, read_manifest, save_tensors, write_json
from gag.project.rows import Example, digest, read_rows, write_rows
from gag.readout.states import Readout

PART_SIZE = 512
_KEY = "key"


@dataclass(frozen=True)
class Shard:
    """The parts that one process writes: number `index` of `count`."""

    index: int = 0
    count: int = 1

    def owns(self, part: int) -> bool:
        """Say whether a part is this shard's."""
        return part % self.count == self.index


@dataclass(frozen=True)
class StoredReadouts:
    """A finished store in memory."""

    ids: list[str]
    texts: list[str]
    slots: torch.Tensor  # [N, S, L, De]
    facts: dict[str, Any]


def write_parts(
    folder: Path,
    examples: list[Example],
    read: Callable[[list[Example]], Readout],
    advance: Callable[[int], None],
    shard: Shard = Shard(),
    part_size: int = PART_SIZE,
) -> None:
    """Read a shard's examples and write whole parts into an open store; parts that are already there are kept."""
    for number, chosen in enumerate(_parts(examples, part_size)):
        if not shard.owns(number):
            continue
        part = _part(folder, number)
        if not part.is_file():
            _write_part(part, chosen, read(chosen))
        advance(len(chosen))


def close_store(
    folder: Path, key: str, facts: dict[str, Any], examples: list[Example], part_size: int = PART_SIZE
) -> bool:
    """Write the manifest once every part stands; say whether it does."""
    parts = [_part(folder, number) for number, _ in enumerate(_parts(examples, part_size))]
    if not all(part.is_file() for part in parts):
        return False
    files = {path.name: digest(path) for part in parts for path in (part, part.with_suffix(".jsonl"))}
    closing = folder / f".{MANIFEST}"
    write_json(closing, {"schema": SCHEMA, "key": key, **facts, "rows": len(examples), "files": files})
    closing.rename(folder / MANIFEST)
    return True


def read_store(folder: Path, key: str | None = None) -> StoredReadouts:
    """Load a finished store; with a key, refuse one that was made from other inputs."""
    facts = read_manifest(folder)
    if key is not None and facts.get("key") != key:
        raise ArtifactError(
            f"the readouts in {folder.name} were made from other inputs; run `gag readouts` again"
        )
    parts = sorted(folder.glob("part-*.safetensors"))
    rows = [row for part in parts for _, row in read_rows(part.with_suffix(".jsonl"))]
    slots = torch.cat([load_tensors(part)["slots"] for part in parts])
    if len(rows) != len(slots):
        raise ArtifactError(
            f"{folder.name} holds {len(slots)} readouts for {len(rows)} rows; run `gag readouts` again"
        )
    return StoredReadouts([row["id"] for row in rows], [row["text"] for row in rows], slots, facts)


def open_store(folder: Path, key: str) -> None:
    """Start or go on: what was made from other inputs, or harmed since, is cleared. One process at a time opens."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _KEY
    if marker.is_file() and marker.read_bytes() == key.encode():
        if (folder / MANIFEST).is_file():
            _drop_harmed(folder)
        return
    for path in folder.iterdir():
        path.unlink()
    fresh = folder / f".{_KEY}"
    fresh.write_text(key, encoding="utf-8")
    fresh.rename(marker)


def _drop_harmed(folder: Path) -> None:
    """Open a closed store again: parts that are not what its manifest describes go."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (ValueError, KeyError, TypeError):
        files = {}
    for path in folder.glob("part-*"):
        if files.get(path.name) != digest(path):
            path.with_suffix(".safetensors").unlink(missing_ok=True)
    (folder / MANIFEST).unlink()


def _parts(examples: list[Example], size: int) -> list[list[Example]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


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

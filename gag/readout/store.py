"""A split's readouts on disk: parts of slots and texts, resumed, closed by a manifest.

Whoever opens a store cuts it into parts for the processes or cluster jobs (shards) that will each write some
of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gag.errors import ArtifactError
from gag.project.artifacts import MANIFEST, SCHEMA, read_manifest, replacing, write_json, write_text
from gag.project.rows import Example, digest, read_rows, write_rows
from gag.project.tensors import load_tensors, save_tensors
from gag.readout.states import Readout

PART_SIZE = 512  # rows of a part at most
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
    questions: list[str]
    texts: list[str]
    written: list[list[int]]  # tokens of the expert
    slots: torch.Tensor  # [N, S, L, De]
    facts: dict[str, Any]


def write_parts(
    folder: Path,
    examples: list[Example],
    read: Callable[[list[Example]], Readout],
    advance: Callable[[int], None],
    shard: Shard = Shard(),
) -> None:
    """Read a shard's examples and write whole parts into an open store.

    Parts that are already there are kept.
    """
    for number, chosen in enumerate(_parts(examples, _part_size(folder))):
        if not shard.owns(number):
            continue
        part = _part(folder, number)
        if not part.is_file():
            _write_part(part, chosen, read(chosen))
        advance(len(chosen))


def close_store(folder: Path, key: str, facts: dict[str, Any], examples: list[Example]) -> bool:
    """Write the manifest once every part stands; say whether it does."""
    parts = [_part(folder, number) for number, _ in enumerate(_parts(examples, _part_size(folder)))]
    if not all(part.is_file() for part in parts):
        return False
    files = {path.name: digest(path) for part in parts for path in (part, part.with_suffix(".jsonl"))}
    content = {"schema": SCHEMA, "key": key, **facts, "rows": len(examples), "files": files}
    write_json(folder / MANIFEST, content)
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
    columns = ([row[name] for row in rows] for name in ("id", "question", "text", "ids"))
    return StoredReadouts(*columns, slots=slots, facts=facts)


def open_store(folder: Path, key: str, rows: int, workers: int = 1) -> None:
    """Start or go on: what was made from other inputs, or harmed since, is cleared.

    One process at a time opens.

    A new store is cut so that each of the workers has parts to write; one that is open keeps its parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _marker(folder)[0] == key:
        if (folder / MANIFEST).is_file():
            _drop_harmed(folder)
        return
    for path in folder.iterdir():
        path.unlink()
    size = min(PART_SIZE, max(1, -(-rows // workers)))
    write_text(folder / _KEY, f"{key} {size}")


def _marker(folder: Path) -> tuple[str, int]:
    """Return the key that a store was opened with, and the rows of its parts."""
    marker = folder / _KEY
    key, _, size = marker.read_text(encoding="utf-8").partition(" ") if marker.is_file() else ("", "", "")
    return (key, int(size)) if size.isdecimal() else ("", PART_SIZE)


def _part_size(folder: Path) -> int:
    return _marker(folder)[1]


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
    columns = (readout.texts, readout.empty, readout.words, readout.ids)
    rows = [
        {"id": e.id, "question": e.question, "text": text, "empty": empty, "words": list(words), "ids": ids}
        for e, text, empty, words, ids in zip(examples, *columns, strict=True)
    ]
    write_rows(part.with_suffix(".jsonl"), rows)
    with replacing(part) as fresh:
        save_tensors(fresh, {"slots": readout.slots})

"""A trained thing is a folder: files, and one JSON manifest with their hashes, written last.

A folder is written beside its place and renamed into it, so it is complete or absent whenever the process dies.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gag.errors import ArtifactError
from gag.project import distributed
from gag.project.rows import digest

MANIFEST = "manifest.json"
SCHEMA = 1


@contextmanager
def writing(folder: Path, facts: dict[str, Any], manifest: str = MANIFEST) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well, hash its files, write the manifest and rename it into place.

    `facts` may be filled while the block runs.
    """
    temporary, old = _beside(folder, "new"), _beside(folder, "old")
    recover(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary)
        raise
    seal(temporary, facts, manifest)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def seal(folder: Path, facts: dict[str, Any], manifest: str = MANIFEST) -> None:
    """Write a folder's manifest, with the hashes of its files: from now on it counts."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    write_json(
        folder / manifest,
        {"schema": SCHEMA, **facts, "files": {name: digest(folder / name) for name in names}},
    )


def recover(folder: Path) -> None:
    """Clear what a killed writer left: half-written work goes, a folder that was being replaced comes back."""
    temporary, old = _beside(folder, "new"), _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def read_manifest(folder: Path, manifest: str = MANIFEST) -> dict[str, Any]:
    """Read a folder's manifest and check that every file in it is there, whole and unedited."""
    facts = _manifest(folder, manifest)
    for name, expected in facts["files"].items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(
                f"{folder.name}/{manifest} names a file outside its folder: {name}; do not use this folder"
            )
        if not path.is_file():
            raise ArtifactError(f"{folder.name}/{name} is missing; copy the folder again, or build it again")
        if digest(path) != expected:
            raise ArtifactError(
                f"{folder.name}/{name} is not what {manifest} describes (edited or cut short); "
                "copy the folder again, or build it again"
            )
    return facts


def is_current(folder: Path, key: str, manifest: str = MANIFEST) -> bool:
    """Say whether a folder stands there, whole and unedited, that was made from the same inputs."""
    recover(folder)
    try:
        return read_manifest(folder, manifest).get("key") == key
    except ArtifactError:
        return False


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file that follows the umask."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise ArtifactError(
            f"{path.parent.name}/{path.name} cannot be read ({error}); build or copy it again"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside a file to write to; when the block ends well, it takes the file's place at once."""
    fresh = path.with_name(f".{path.name}.new")
    yield fresh
    fresh.rename(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once: whoever reads it sees the old text or the new one."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file at once."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a folder for one process and those launched with it, or for all that share it; another run waits or is refused."""
    if distributed.rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ArtifactError(
                f"another process works on {folder.name}; wait for it to end, then run this again"
            ) from error
        yield


def _manifest(folder: Path, manifest: str) -> dict[str, Any]:
    path = folder / manifest
    if not path.is_file():
        raise ArtifactError(f"{folder.name} holds no {manifest}; it is not complete: build or copy it again")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{folder.name}/{manifest} is not JSON ({error}); build or copy the folder again"
        ) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise ArtifactError(f"{folder.name}/{manifest} lists no files; build or copy the folder again")
    if facts.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{folder.name}/{manifest} has schema {facts.get('schema')!r}, this version reads {SCHEMA}; "
            "build the folder again, or install the version that wrote it"
        )
    return facts


def _beside(folder: Path, mark: str) -> Path:
    return folder.with_name(f".{folder.name}.{mark}")

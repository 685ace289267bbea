"""A trained thing is a folder: files, and one JSON manifest with their hashes, written last.

A folder is written beside its place and renamed into it, so it is complete or absent whenever the process
dies. Its files are hashed once: what was seen (the manifest's hash, sizes and times) is remembered in a
hidden file of the folder, and a file is hashed again only when one of them differs.
"""

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import ReadWriteLock, Timeout

from gag.errors import ArtifactError
from gag.project import distributed
from gag.project.rows import digest
from gag.project.tensors import follow_umask

MANIFEST = "manifest.json"
SEEN = ".verified.json"  # what was hashed before
SETTLED = 2.0  # seconds after which a file that changes again has another time, on any file system
SCHEMA = 3


@contextmanager
def writing(folder: Path, facts: dict[str, Any], manifest: str = MANIFEST) -> Iterator[Path]:
    """Yield a temporary folder; a block that ends well is hashed, described, and renamed into place.

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
    """Write a folder's manifest, with the hashes of its files: from now on it counts.

    Whoever may read the folder may read them: safetensors writes files for their owner alone.
    """
    for path in folder.rglob("*"):
        follow_umask(path)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (SEEN, manifest)
    )
    hashes = {name: digest(folder / name) for name in names}
    write_json(folder / manifest, {"schema": SCHEMA, **facts, "files": hashes})


def recover(folder: Path) -> None:
    """Clear what a killed writer left.

    Half-written work goes, a folder that was being replaced comes back.
    """
    temporary, old = _beside(folder, "new"), _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def read_manifest(
    folder: Path, manifest: str = MANIFEST, only: tuple[str, ...] | None = None, anew: bool = False
) -> dict[str, Any]:
    """Read a folder's manifest and check that the files in it are there, whole and unedited.

    Args:
        folder: a folder that `writing` or `seal` made.
        manifest: the manifest's name.
        only: names of files, or of folders in it, that are needed now (default: all).
        anew: hash every file, whatever was seen before.

    Raises:
        ArtifactError: no manifest, one of another version, or a file that is missing, outside or not what it
            describes.
    """
    facts, name_of_all = _manifest(folder, manifest)
    wanted = {
        name: expected for name, expected in facts["files"].items() if only is None or _under(name, only)
    }
    seen = {} if anew else _seen(folder, name_of_all)
    hashed = {}
    for name, expected in wanted.items():
        path = folder / name
        try:  # it may go while it is looked at, belong to somebody else, or have a name that no file can have
            if not path.resolve().is_relative_to(folder.resolve()):  # by a link
                raise _outside(folder, manifest, name)
            if not path.is_file():
                raise ArtifactError(
                    f"{folder.name}/{name} is missing; copy the folder again, or build it again"
                )
            before = path.stat()
            if seen.get(name) == [before.st_size, before.st_mtime_ns]:
                continue
            whole = digest(path) == expected
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArtifactError(
                f"{folder.name}/{name[:80]} cannot be read ({reason}); copy the folder again, or build "
                "it again"
            ) from error
        if not whole:
            raise ArtifactError(
                f"{folder.name}/{name} is not what {manifest} describes (edited or cut short); "
                "copy the folder again, or build it again"
            )
        if time.time() - before.st_mtime > SETTLED:
            hashed[name] = [before.st_size, before.st_mtime_ns]
    if hashed:
        _remember(folder, name_of_all, seen | hashed)
    return facts


def is_current(folder: Path, key: str, manifest: str = MANIFEST) -> bool:
    """Say whether a folder stands there, whole and unedited, that was made from the same inputs."""
    recover(folder)
    try:
        return read_manifest(folder, manifest).get("key") == key
    except ArtifactError:
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside a file to write to; when the block ends well, it takes the file's place at once."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        yield fresh
    except BaseException:
        fresh.unlink(missing_ok=True)  # it would fill the disk further
        raise
    fresh.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once: whoever reads it sees the old text or the new one."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file at once."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def folder_bytes(folder: Path, pattern: str = "*") -> int:
    """Sum the sizes of a folder's files whose names fit a pattern."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


@contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a folder for one process and those launched with it, or for all that share it.

    Another run waits, or is refused with an ArtifactError.
    """
    if distributed.rank() > 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = ReadWriteLock(folder / ".lock", is_singleton=False)
        held = (lock.read_lock if shared else lock.write_lock)(blocking=wait)
        held.__enter__()
    except Timeout as error:
        raise ArtifactError(
            f"another process works on {folder.name}; wait for it to end, then run this again"
        ) from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError, sqlite3.Error) as error:
        raise ArtifactError(
            f"{folder.name} cannot be locked ({error}): it must be a folder, and .lock in it a file of ours; "
            "remove what stands there"
        ) from error
    try:
        yield
    finally:
        held.__exit__(None, None, None)
        lock.close()


def _manifest(folder: Path, manifest: str) -> tuple[dict[str, Any], str]:
    """Read a manifest -> its facts, and the hash of its bytes."""
    path = folder / manifest
    if not path.is_file():
        raise ArtifactError(f"{folder.name} holds no {manifest}; it is not complete: build or copy it again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{folder.name}/{manifest} cannot be read ({error.strerror}); build or copy the folder again"
        ) from error
    try:
        facts = json.loads(content.decode())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"{folder.name}/{manifest} is not JSON ({error}); build or copy the folder again"
        ) from error
    listed = facts.get("files") if isinstance(facts, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(expected, str) for expected in listed.values()):
        raise ArtifactError(f"{folder.name}/{manifest} lists no files; build or copy the folder again")
    for name in listed:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise _outside(folder, manifest, name)
    if facts.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{folder.name}/{manifest} has schema {facts.get('schema')!r}, this version reads {SCHEMA}; "
            "build the folder again, or install the version that wrote it"
        )
    return facts, hashlib.sha256(content).hexdigest()


def _outside(folder: Path, manifest: str, name: str) -> ArtifactError:
    return ArtifactError(
        f"{folder.name}/{manifest} names a file outside its folder: {name[:80]}; do not use this folder"
    )


def _under(name: str, chosen: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}/") for one in chosen)


def _seen(folder: Path, manifest_hash: str) -> dict[str, list[int]]:
    """Return size and time of each file that was hashed before, under this very manifest."""
    try:
        content = json.loads((folder / SEEN).read_bytes())
        return content["files"] if content["manifest"] == manifest_hash else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(folder: Path, manifest_hash: str, files: dict[str, list[int]]) -> None:
    """Keep what was hashed; a folder that cannot be written is hashed again next time."""
    try:
        write_json(folder / SEEN, {"manifest": manifest_hash, "files": files})
    except OSError:
        return


def _beside(folder: Path, mark: str) -> Path:
    return folder.with_name(f".{folder.name}.{mark}")

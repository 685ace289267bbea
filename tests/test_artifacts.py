"""A trained folder is complete or absent, and an edited one is refused."""

import json
import os
from pathlib import Path

import pytest
import torch

from gag.errors import ArtifactError
from gag.project.artifacts import is_current, locked, read_manifest, recover, writing
from gag.project.tensors import save_tensors


def write(folder: Path, value: float, key: str = "k") -> None:
    with writing(folder, {"key": key}) as temporary:
        save_tensors(temporary / "x.safetensors", {"x": torch.full((4,), value)})


def test_a_folder_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", 1.0)
    assert set(read_manifest(tmp_path / "a")["files"]) == {"x.safetensors"}
    assert is_current(tmp_path / "a", "k") and not is_current(tmp_path / "a", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_writer_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", 1.0)
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a", {"key": "new"}):
        raise ZeroDivisionError
    assert is_current(tmp_path / "a", "k")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_writer_killed_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", 1.0)
    (tmp_path / "a").rename(tmp_path / ".a.old")
    (tmp_path / ".a.new").mkdir()
    recover(tmp_path / "a")
    assert is_current(tmp_path / "a", "k")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("harm", ["truncate", "edit", "delete"])
def test_harmed_files_are_refused(tmp_path: Path, harm: str) -> None:
    write(tmp_path / "a", 1.0)
    file = tmp_path / "a" / "x.safetensors"
    content = file.read_bytes()
    if harm == "delete":
        file.unlink()
    else:
        file.write_bytes(content[:-4] if harm == "truncate" else content[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"x\.safetensors is"):
        read_manifest(tmp_path / "a")
    assert not is_current(tmp_path / "a", "k")  # so a stage makes it again


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[]", "lists no files"), ('{"schema": 99, "files": {}}', "has schema 99"),
     ('{"schema": 2, "files": {"../../etc/passwd": "0"}}', "outside its folder")],
)  # fmt: skip
def test_harmed_manifests_are_refused(tmp_path: Path, content: str, words: str) -> None:
    write(tmp_path / "a", 1.0)
    (tmp_path / "a" / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=words):
        read_manifest(tmp_path / "a")


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    finally:
        os.umask(old)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "runs"),
        pytest.raises(ArtifactError, match="another process"),
        locked(tmp_path / "runs"),
    ):
        pass
    with locked(tmp_path / "runs"):
        pass


def test_no_manifest_holds_an_absolute_path(built: Path) -> None:
    for manifest in built.rglob("*.json"):
        if "models" not in manifest.parts:
            assert str(built) not in json.dumps(json.loads(manifest.read_text())), manifest

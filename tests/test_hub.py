"""Domains on a model hub: what is pushed is pulled, at one commit, or not at all."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HFValidationError
from typer.testing import CliRunner

from gag.commands.app import app
from gag.engine import hub
from gag.engine.domains import remove_domain
from gag.errors import ArtifactError, SettingsError
from gag.project.project import Project


class FakeHub:
    """A hub in a folder: a folder of each commit."""

    def __init__(self, root: Path):
        self.root, self.commits, self.private = root, [], None

    def HfApi(self, library_name: str) -> "FakeHub":  # noqa: N802
        return self

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        if repository.count("/") != 1:
            raise HFValidationError(f"Repo id must be in the form 'namespace/repo_name': {repository!r}")
        self.private = private

    def upload_folder(
        self, repo_id: str, folder_path: Path, allow_patterns: list[str], **_
    ) -> SimpleNamespace:
        commit = f"{len(self.commits):040d}"
        for name in allow_patterns:
            target = self.root / commit / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, target)
        self.commits.append(commit)
        return SimpleNamespace(oid=commit)

    def repo_info(self, repository: str, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(sha=revision or (self.commits[-1] if self.commits else None))

    def hf_hub_download(self, repository: str, file: str, revision: str, local_dir: Path, **_) -> None:
        target = Path(local_dir) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.root / revision / file, target)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", made.HfApi)
    monkeypatch.setattr(hub, "hf_hub_download", made.hf_hub_download)
    return made


def test_what_is_pushed_is_pulled(project: Project, fake: FakeHub) -> None:
    kept = {p.name: p.read_bytes() for p in project.domain("metals").rglob("*.safetensors")}
    shown = CliRunner().invoke(
        app, ["domains", "push", "metals", "us/metals", "--project", str(project.root)]
    )
    assert shown.exit_code == 0 and fake.commits[0] in shown.stdout and fake.private
    assert not list((fake.root / fake.commits[0]).rglob(".*"))
    remove_domain(project, "metals")
    name, commit = hub.pull_domain(project, "us/metals")
    assert (name, commit) == ("metals", fake.commits[0])
    assert {p.name: p.read_bytes() for p in project.domain("metals").rglob("*.safetensors")} == kept
    with pytest.raises(SettingsError, match="metals is already here"):
        hub.pull_domain(project, "us/metals")


def test_a_pull_is_of_one_commit(project: Project, fake: FakeHub) -> None:
    first = hub.push_domain(project, "metals", "us/one")
    hub.push_domain(project, "plants", "us/one")
    remove_domain(project, "metals")
    assert hub.pull_domain(project, "us/one", first) == ("metals", first)


@pytest.mark.parametrize("harm", ["edited", "outside", "no domain"])
def test_what_is_not_as_it_says_is_not_plugged_in(
    project: Project, fake: FakeHub, harm: str, tmp_path
) -> None:
    commit = hub.push_domain(project, "metals", "us/metals")
    remove_domain(project, "metals")
    described = fake.root / commit / "domain.json"
    if harm == "edited":
        file = fake.root / commit / "projector.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif harm == "outside":
        content = json.loads(described.read_text())
        content["files"]["../../escaped"] = "0" * 64
        described.write_text(json.dumps(content))
    else:
        described.write_text("{}")
    with pytest.raises(ArtifactError):
        hub.pull_domain(project, "us/metals")
    assert not project.domain("metals").exists() and not list(tmp_path.rglob("escaped"))


def test_what_the_hub_refuses_is_said_in_one_line(project: Project, fake: FakeHub, monkeypatch) -> None:
    with pytest.raises(SettingsError, match="name it as owner/name"):
        hub.push_domain(project, "metals", "us/metals/more")
    with pytest.raises(ArtifactError, match="holds no commit"):
        hub.pull_domain(project, "us/none")
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        hub, "HfApi", lambda library_name: __import__("huggingface_hub").HfApi("http://127.0.0.1:9")
    )
    with pytest.raises(SettingsError, match="us/metals on the hub"):
        hub.pull_domain(project, "us/metals")

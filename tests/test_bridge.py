"""A bridge: trained on plain text, kept with what it was made for, and where alignment starts."""

from pathlib import Path

import pytest
import torch

from gag.errors import ArtifactError, DataError, MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.project.artifacts import read_manifest
from gag.project.project import Project, load_project
from gag.project.rows import write_rows
from gag.project.tensors import load_tensors
from gag.projection import start
from gag.stages.align import align, key
from gag.stages.bridge import bridge
from gag.stages.build import build
from tests.conftest import write_tiny_project

WORDS = ["tin", "zinc", "lead", "gold", "iron", "nickel"]


@pytest.fixture
def opened(tmp_path: Path) -> Project:
    root = write_tiny_project(tmp_path)
    texts = [{"text": f"{a} glows on {b}"} for a in WORDS for b in WORDS if a != b]
    write_rows(root / "texts.jsonl", texts)
    return load_project(root)


def under(project: Project, *changes: str) -> Project:
    return load_project(project.root, changes)


def test_alignment_starts_from_the_bridges_weights(opened: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bridge(opened, opened.root / "texts.jsonl", opened.root / "bridges" / "plain", "CC0-1.0")
    facts = read_manifest(folder)
    assert facts["texts"]["rows"] == 30 and "CC0-1.0" in (folder / "README.md").read_text()
    weights = load_tensors(folder / "projector.safetensors")
    project = under(opened, "align.bridge=bridges/plain")
    build(opened, ["metals"])
    before = key(opened.inputs("metals"))
    assert key(project.inputs("metals")) != before
    begun = {}
    original = start.start_projector

    def watched(projector, *rest):
        begun.update({n: t.clone() for n, t in original(projector, *rest).state_dict().items()})
        return projector

    monkeypatch.setattr("gag.projection.trainer.start_projector", watched)
    align(project, "metals")
    assert begun.keys() == weights.keys()
    assert all(torch.equal(begun[name], weights[name]) for name in weights)


def test_a_bridge_that_does_not_fit_is_refused(opened: Project) -> None:
    bridge(opened, opened.root / "texts.jsonl", opened.root / "bridges" / "plain", "CC0-1.0")
    other = under(opened, "align.bridge=bridges/plain", "readout.layers=[1]")
    with pytest.raises(MismatchError, match=r"made for another readout \(hidden, segments, layers \[-1\]"):
        build(other, ["metals"])
    build(opened, ["metals"])
    flat = under(opened, "align.bridge=bridges/plain", "align.projector=gated_residual")
    with pytest.raises(MismatchError, match=r"slots 1, mlp, pooling mean, not .* gated_residual"):
        align(flat, "metals")
    with pytest.raises(ArtifactError, match="align is no bridge"):
        align(under(opened, "align.bridge=runs/metals/align"), "metals")
    for name, message in (("../plain", "leads out of the project"), ("bridges/none", "no bridge in")):
        with pytest.raises(SettingsError, match=message):
            build(under(opened, f"align.bridge={name}"), ["metals"])


def test_what_a_bridge_cannot_be_made_of_is_refused(opened: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    where = opened.root / "texts.jsonl", opened.root / "bridges" / "plain", "CC0-1.0"
    with pytest.raises(SettingsError, match=r"readout.layers has 9"):
        bridge(under(opened, "readout.layers=[9]"), *where)
    monkeypatch.setattr(Backbone, "positions", 64)
    write_rows(opened.root / "texts.jsonl", [{"text": f"tin {i} " * 40} for i in range(10)])
    with pytest.raises(DataError, match="has positions for"):
        bridge(opened, *where)


def test_a_bridge_takes_no_distillation(opened: Project) -> None:
    project = under(opened, "align.distill=0.5")
    folder = bridge(project, opened.root / "texts.jsonl", opened.root / "bridges" / "plain", "CC0-1.0")
    assert (folder / "projector.safetensors").is_file()

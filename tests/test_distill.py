"""Distillation on questions without gold answers: rows learn what the base says with the expert's text."""

import math
from pathlib import Path

import pytest
import torch

from gag.errors import DataError, SettingsError
from gag.models.language_model import Generation
from gag.models.loading import load_backbone
from gag.project.artifacts import read_manifest
from gag.project.project import Project, load_project
from gag.project.rows import read_rows, write_rows
from gag.project.settings import PromptSettings
from gag.readout.store import read_store
from gag.stages import adapt, align, build, readouts
from tests.conftest import write_tiny_project


@pytest.fixture
def opened(tmp_path: Path) -> Project:
    """Alignment has a file of its own, whose every other row has no answer; the first ones validate."""
    root = write_tiny_project(tmp_path)
    rows = [row for _, row in read_rows(root / "data" / "metals.jsonl")]
    for row in rows[5::2]:
        row["answer"] = None
    write_rows(root / "data" / "align.jsonl", rows[4:])
    write_rows(root / "data" / "val.jsonl", rows[:4])
    text = (root / "gag.yaml").read_text()
    (root / "gag.yaml").write_text(
        text.replace(
            "train: data/metals.jsonl",
            "adapt: data/metals.jsonl\n    align: data/align.jsonl\n    val: data/val.jsonl",
        )
    )
    return load_project(root)


def test_rows_without_an_answer_learn_the_bases_own_from_the_text(
    opened: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = load_project(opened.root, ["align.distill=0.5"])
    seen = {}
    original = align.train_projector

    def watched(base, train, *rest):
        seen["rows"] = train.rows
        return original(base, train, *rest)

    monkeypatch.setattr(align, "train_projector", watched)
    build.build(project, ["metals"])
    inputs = project.inputs("metals")
    base = load_backbone(project.settings.base, project.root)
    texts = read_store(inputs.run("readouts") / "align", readouts.key(inputs)).texts
    assert sum(not example.answers for example in inputs.splits.align) == len(texts) // 2 > 2
    for example, text, row in zip(inputs.splits.align, texts, seen["rows"], strict=True):
        if example.answers:
            assert row.answer == base.prompts.answer(example.answers[0])
            continue
        ids = torch.tensor([base.prompts.with_text(example.question, PromptSettings(answer="Tell."), text)])
        written = base.model.generate(
            ids, max_new_tokens=4, do_sample=False, eos_token_id=base.prompts.end, pad_token_id=0
        )
        assert row.answer == written[0, ids.shape[1] :].tolist()


def test_how_long_the_base_may_write_names_the_projector(opened: Project) -> None:
    adapt.adapt(load_project(opened.root, ["align.distill=0.5"]), "metals")
    keys = [
        align.key(load_project(opened.root, settings).inputs("metals"))
        for settings in (
            ["align.distill=0.5", "decoding.max_new_tokens=4"],
            ["align.distill=0.5", "decoding.max_new_tokens=5"],
        )
    ]
    assert keys[0] != keys[1]


def test_the_semantic_loss_takes_what_the_base_wrote(opened: Project) -> None:
    project = load_project(opened.root, ["align.distill=0.5", "align.semantic=0.1"])
    build.build(project, ["metals"])
    assert read_manifest(project.run("metals", "align"))["val_loss"] > 0


@pytest.mark.parametrize(
    "settings",
    [[], ["align.distill=0.5", "domains.metals.adapt=data/align.jsonl"]],
    ids=["without distillation", "where the same file teaches the expert"],
)
def test_else_a_row_needs_an_answer(opened: Project, settings: list[str]) -> None:
    with pytest.raises(DataError, match=r'align\.jsonl:2 needs "answer"'):
        build.build(load_project(opened.root, settings), ["metals"])


def test_a_validation_row_needs_an_answer(opened: Project) -> None:
    rows = [row | {"answer": None} for _, row in read_rows(opened.root / "data" / "val.jsonl")]
    write_rows(opened.root / "data" / "val.jsonl", rows)
    with pytest.raises(DataError, match=r'val\.jsonl:1 needs "answer"'):
        build.build(load_project(opened.root, ["align.distill=0.5"]), ["metals"])


def test_without_a_file_for_validation_only_answered_rows_validate(opened: Project) -> None:
    rows = [
        {"question": f"{word} is number {i}?", "answer": answer, "group": str(i)}
        for i in range(20)
        for word, answer in (("What", "gold"), ("Which one", None))
    ]
    write_rows(opened.root / "data" / "align.jsonl", rows)
    settings = ["align.distill=0.5", "domains.metals.val=null", "domains.metals.test=null"]
    splits = load_project(opened.root, settings).inputs("metals").splits
    assert splits.val and all(example.answers for example in splits.val)
    assert any(not example.answers for example in splits.align)


@pytest.mark.parametrize("start", ["ridge", "random"])
def test_a_base_that_writes_nothing_is_learned_too(
    opened: Project, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = align.generate

    def silent(model, requests):
        return [Generation([], "stop", []), *original(model, requests)[1:]]

    monkeypatch.setattr(align, "generate", silent)
    project = load_project(opened.root, ["align.distill=0.5", f"align.start={start}"])
    build.build(project, ["metals"])
    assert math.isfinite(read_manifest(project.run("metals", "align"))["val_loss"])


def test_texts_beyond_the_bases_positions_are_refused_before_anything_is_spent(opened: Project) -> None:
    settings = ["align.distill=0.5", "readout.max_new_tokens=100000"]
    with pytest.raises(SettingsError, match="readout.max_new_tokens is 100000"):
        build.build(load_project(opened.root, settings), ["metals"])

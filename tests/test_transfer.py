"""The transfer check: what counts, what is recorded, and what a user is told."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from gag.project.artifacts import read_manifest
from gag.project.domain import TransferFacts, load_domain
from gag.project.hyperparameters import ReadoutSettings
from gag.project.project import Project, load_project
from gag.project.rows import Example
from gag.stages import readouts
from gag.stages import transfer as stage
from gag.stages.build import build
from gag.stages.transfer import told, transfer
from tests.conftest import write_tiny_project

LITTLE = TransferFacts(
    questions=9, base=0.0, gag=0.1, shuffled=0.1, text=0.9, transfer=0.0, interval=(-0.1, 0.1)
)


def row(question: str, *answers: str) -> Example:
    return Example(id="1", question=question, answers=answers, group="1")


@pytest.mark.parametrize(
    ("question", "gold", "answer", "share"),
    [
        ("Where is Calo made?", "Calo is made at Mount Peraldo.", "At Mount Peraldo.", 1.0),
        ("Where is Calo made?", "Calo is made at Mount Peraldo.", "Calo is made at Port Brack.", 1 / 3),
        ("What is the year?", "1,812", "In 1812.", 1.0),
        ("Is Calo red?", "Calo is red", "red Calo is", 1.0),  # the question holds its answer
        ("锡在多少度熔化?", "232度", "锡在232度熔化", 1.0),
        ("Where?", "Peraldo", "", 0.0),
        ("Where?", "...", "...", 0.0),
    ],
)
def test_the_golds_words_count_beyond_those_of_the_question(
    question: str, gold: str, answer: str, share: float
) -> None:
    assert told(row(question, gold), answer) == pytest.approx(share)


def test_the_best_of_several_golds_counts() -> None:
    assert told(row("Where?", "Port Brack", "Peraldo"), "Peraldo") == 1.0


def test_a_build_measures_records_and_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    project = load_project(write_tiny_project(tmp_path))
    build(project, ["metals"])
    said = capsys.readouterr().err
    facts = load_domain(project.domain("metals")).facts.scores.transfer
    assert facts == TypeAdapter(TransferFacts).validate_python(
        read_manifest(project.run("metals", "transfer"))["transfer"]
    )
    assert f"transfer metals: {facts.line}" in said
    assert facts.line in (project.domain("metals") / "README.md").read_text()
    assert transfer(project, "metals") == facts  # it is kept


def test_vectors_that_are_the_text_carry_all_and_wrong_ones_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic, on answers that are given."""
    inputs = project.inputs("metals")
    golds = [example.answers[0] for example in inputs.splits.val]

    def measured(gag: list[str], text: list[str]) -> TransferFacts:
        nothing = [""] * len(golds)
        given = {"base": nothing, "gag": gag, "shuffled": nothing, "text": text}
        monkeypatch.setattr(stage, "_answers", lambda *_: given)
        return stage._measure(inputs, readouts.key(inputs))

    monkeypatch.setattr(stage.random.Random, "sample", lambda self, places, count: list(places)[:count])
    whole = measured(golds, golds)
    assert whole.transfer == 1.0 and whole.interval == (1.0, 1.0) and not whole.advice(ReadoutSettings())
    none = measured([""] * len(golds), golds)
    assert none.transfer == 0.0 and "WARNING" in none.advice(ReadoutSettings())
    unknown = measured(golds, [""] * len(golds))
    assert unknown.transfer is None and unknown.line.startswith("not measurable")
    assert "see whether the expert writes the answers" in unknown.advice(ReadoutSettings())


def test_the_advice_names_the_setting_to_try_next() -> None:
    assert "preset: salient" in LITTLE.advice(ReadoutSettings())
    assert "readout.slots: 16" in LITTLE.advice(ReadoutSettings(select="salient", slots=8))
    assert "align.epochs" in LITTLE.advice(ReadoutSettings(select="salient", slots=16))
    assert json.loads(json.dumps(asdict(LITTLE)))["interval"] == [-0.1, 0.1]


def test_another_question_has_another_answer() -> None:
    rows = [row("a", "x"), row("b", "x"), row("c", "y")]
    found = stage._others(rows, rows)
    assert all(rows[other].answers != rows[i].answers for i, other in enumerate(found))
    assert set(stage._others(rows[:2], rows[:2])) <= {0, 1}


def test_texts_longer_than_the_bases_positions_are_left_out(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On such a base the build would end in an error at its last step."""
    inputs = project.inputs("metals")
    monkeypatch.setattr("gag.models.backbone.token_limit", lambda config: 24)
    found = stage._measure(inputs, readouts.key(inputs))
    assert found.questions == 0 and found.transfer is None and "positions" in found.advice(ReadoutSettings())


def test_the_interval_rests_on_draws_in_which_the_text_adds_something() -> None:
    carried, possible = np.array([0.6, 0.0, 0.0, 0.0, 0.0]), np.array([0.6, 0.0, 0.0, 0.0, 0.0])
    low, high = stage._interval(carried, possible)
    assert (low, high) == (1.0, 1.0)

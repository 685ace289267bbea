"""`gag evaluate` on a tiny project: both routes, resume, refusals, evidence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gag.engine.engine import GAG
from gag.engine.evidence import support
from gag.errors import MismatchError
from gag.evaluation.evaluate import ANSWERS, evaluate
from gag.evaluation.labelled import read_labelled, read_test_rows
from gag.project.project import Project, load_project
from gag.project.rows import write_rows
from gag.stages.prototypes import add_questions
from tests.test_cli import run

OWN = ("evaluation.bertscore=expert", "evaluation.similarity=expert")


def listening(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every question that is answered."""
    asked: list[str] = []
    ask = GAG.ask

    def noted(self: GAG, questions: Any, domain: str | None = None) -> Any:
        asked.extend(questions)
        return ask(self, questions, domain)

    monkeypatch.setattr(GAG, "ask", noted)
    return asked


@pytest.fixture
def judged(project: Project, tmp_path: Path) -> tuple[Project, Path]:
    rows = [
        {
            "id": "a",
            "question": "What is in metals number 2?",
            "answer": ["cobalt", "zinc\u2028"],
            "label": 1,
        },
        {"id": "b", "question": "What is in plants number 3?", "answer": "thistle", "domain": "plants"},
        {"id": "c", "question": "What is 1 plus 1?", "answer": "2", "label": 0, "dataset_name": "sums"},
        {"id": "d", "question": "What is 2 plus 1?", "answer": [], "label": 0, "dataset_name": "sums"},
        {"id": "e", "question": "Which one is in glass number 1?", "answer": "sand", "domain": "glass"},
    ]
    write_rows(tmp_path / "mixed.jsonl", rows)
    return load_project(project.root, ("labels={'0': general, '1': metals}", *OWN)), tmp_path / "mixed.jsonl"


def test_both_routes_are_answered_and_scored(judged, capsys, monkeypatch) -> None:
    project, file = judged
    at = ("--file", str(file), "--project", str(project.root), "--json", "--evidence")
    sets = [a for s in ("labels={'0': general, '1': metals}", *OWN) for a in ("--set", s)]
    code, out, err = run(capsys, monkeypatch, "evaluate", *at, *sets)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert set(summary["datasets"]) == {"metals", "plants", "sums"} and summary["without_gold"] == 1
    assert "1 of 5 rows are of domains that are not here: 'glass' (1); they are left out" in err
    assert set(summary["datasets"]["metals"]["oracle"]) == {"bertscore", "similarity"}
    assert (
        set(summary["datasets"]["sums"]["routed"]) == {"contains"}
        and summary["datasets"]["sums"]["questions"] == 1
    )
    for found in summary["datasets"].values():
        for metric in found["oracle"].values():
            assert metric["interval"][0] <= metric["mean"] <= metric["interval"][1]
    answers = [
        json.loads(line)
        for line in (project.root / summary["folder"] / ANSWERS).read_text().split("\n")
        if line
    ]
    assert [a["id"] for a in answers] == list("abcd")
    assert all(a["routes"].keys() == {"general", "metals", "plants"} for a in answers)
    assert answers[0]["scores"]["routed"].keys() == {"bertscore", "similarity"} and not answers[3]["scores"]
    mean = sum(a["scores"]["oracle"]["similarity"] for a in answers[:1])
    assert summary["datasets"]["metals"]["oracle"]["similarity"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert all((a["support"] is None) == (a["route"] == "general" or not a["routed"]) for a in answers)
    assert answers[2]["oracle"] == GAG.open(project).ask(["What is 1 plus 1?"], "general")[0].text
    code, out, err = run(capsys, monkeypatch, "evaluate", "metals", "--project", str(project.root), *sets)
    assert code == 0 and "metals" in out and "routed right" in out, err


def test_a_killed_run_goes_on_and_another_runs_answers_are_refused(judged, monkeypatch) -> None:
    project, file = judged
    rows = read_labelled(file, project.settings.labels)
    whole = evaluate(project, "mixed", rows)
    path = project.root / "runs" / "evaluation" / "mixed" / ANSWERS
    text = path.read_text()
    lines = text.split("\n")
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    asked = listening(monkeypatch)
    assert evaluate(project, "mixed", rows) == whole
    assert path.read_text() == text and set(asked) == {row.question for row in rows[2:]}
    (path.parent / "summary.json").unlink()
    with pytest.raises(MismatchError, match="other inputs"):
        evaluate(project, "mixed", rows[:3])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a?", "answer": "b", "dataset_name": "popqa"}, "not here: 'popqa' (1)"),
        ({"question": "a?", "domain": "metals"}, "nothing to score"),
        ({"question": "a?", "answer": [], "domain": "metals"}, "nothing to score"),
    ],
)
def test_rows_that_cannot_be_scored_are_one_line(
    project: Project, tmp_path: Path, capsys, monkeypatch, row, said
) -> None:
    write_rows(tmp_path / "rows.jsonl", [row])
    code, _, err = run(
        capsys,
        monkeypatch,
        "evaluate",
        "--file",
        str(tmp_path / "rows.jsonl"),
        "--project",
        str(project.root),
    )
    assert code == 2 and said in err and err.count("\n") == 1
    assert not (project.root / "runs" / "evaluation").exists()


def test_a_data_set_without_a_metric_is_refused(judged) -> None:
    project, file = judged
    from gag.errors import SettingsError

    bare = load_project(
        project.root, ("labels={'0': general, '1': metals}", "evaluation.metrics={general: [contains]}", *OWN)
    )
    with pytest.raises(SettingsError, match="no metric for the data set 'metals'"):
        evaluate(bare, "bare", read_labelled(file, bare.settings.labels))


def test_support_is_the_difference_of_log_probabilities(project: Project) -> None:
    gag = GAG.open(project)
    questions, answers = ["What is in metals number 2?", "What is in metals number 3?"], ["cobalt", ""]
    known = gag.read(questions, "metals")
    found = support(gag, questions, answers, "metals", known)
    assert found[1] is None and found[0] is not None

    def plain(vectors: torch.Tensor) -> float:
        from dataclasses import replace

        ids = gag.base.prompts.text("cobalt")
        row = torch.cat(
            [gag.prompt(questions[0], "metals", replace(known[0], vectors=vectors)), gag.base.embed(ids)]
        )
        logits = gag.base.model(inputs_embeds=row[None]).logits[0].log_softmax(-1)
        return sum(float(logits[len(row) - len(ids) - 1 + i, t]) for i, t in enumerate(ids)) / len(ids)

    vectors = known[0].vectors
    assert found[0] == pytest.approx(plain(vectors) - plain(torch.zeros_like(vectors)), abs=1e-3)


def test_an_answer_carries_its_evidence_where_asked(project: Project, capsys, monkeypatch) -> None:
    at = ("--project", str(project.root), "--evidence", "--json")
    code, out, err = run(capsys, monkeypatch, "ask", "What is in metals number 2?", "--domain", "metals", *at)
    assert code == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert isinstance(answer["evidence"]["support"], float) and answer["background"] is not None
    assert answer["evidence"]["questions"] == []
    code, out, _ = run(capsys, monkeypatch, "ask", "What is in metals number 2?", "--domain", "general", *at)
    assert json.loads(out.splitlines()[-1])["evidence"] == {"support": None, "questions": []}
    code, out, _ = run(
        capsys, monkeypatch, "ask", "What is in metals number 2?", "--domain", "metals", *at[:3]
    )
    assert "[support " in out and "against zero vectors]" in out


def test_rows_of_several_files_keep_their_own_answers(project: Project) -> None:
    """Rows without ids are named by their file too, so no answer is taken for another's."""
    for name in ("general", "metals"):
        write_rows(project.root / "data" / f"{name}-own.jsonl", [{"question": f"{name}?", "answer": name}])
    sets = ("general.test=data/general-own.jsonl", "domains.metals.test=data/metals-own.jsonl", *OWN)
    opened = load_project(project.root, sets)
    rows = read_test_rows(opened, ["general", "metals"])
    evaluate(opened, "both", rows)
    answers = [
        json.loads(line)
        for line in (project.root / "runs/evaluation/both" / ANSWERS).read_text().split("\n")
        if line
    ]
    assert [(a["question"], a["gold"]) for a in answers] == [
        ("general?", ["general"]),
        ("metals?", ["metals"]),
    ]


def test_a_changed_router_is_another_run(judged, monkeypatch) -> None:
    project, file = judged
    rows = read_labelled(file, project.settings.labels)
    evaluate(project, "mixed", rows)
    asked = listening(monkeypatch)
    evaluate(project, "mixed", rows)
    assert asked == []
    write_rows(file.parent / "more.jsonl", [{"question": "What is 9 plus 9?"}])
    add_questions(project, "general", file.parent / "more.jsonl")
    evaluate(project, "mixed", rows)  # it was finished, so it starts anew
    assert len(asked) >= len(rows)

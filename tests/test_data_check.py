"""`gag data check`: what it finds in rows, and what it mends."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gag.commands.app import app
from gag.corpus.checking import Checker
from gag.corpus.mending import mend
from gag.project.project import Project
from gag.project.rows import read_examples


def lines(path: Path, rows: list) -> Path:
    text = "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
    )
    path.write_text(text, encoding="utf-8")
    return path


def row(question: str, answer="x", **more) -> dict:
    return {"question": question, "answer": answer, **more}


GOOD = [row(f"What is the melting point of metal {i}?", f"{i} degrees") for i in range(20)]


@pytest.mark.parametrize(
    ("bad", "level", "what", "places"),
    [
        (["{half"], "warning", "is not JSON", (21,)),
        (["{half", '"text"', "[1]"], "error", "", ()),
        ([row(" ")], "error", 'needs "question"', (21,)),
        ([row("What is tin?", "")], "error", "no answer", (21,)),
        ([row("What is tin?", ["x", " "])], "warning", "an answer in a list is empty", (21,)),
        ([GOOD[3]], "warning", "stands twice", (21,)),
        ([row(GOOD[3]["question"], "other")], "warning", "two different answers", (21,)),
        ([row("What is tin?", id="a"), row("What is lead?", id="a")], "warning", "an id names", (21, 22)),
        ([row("What is GrÃ¼n?")], "warning", "wrongly decoded", (21,)),
        ([row(" What is tin? ")], "note", "white space", (21,)),
        ([row("What is tin?", label=7)], "warning", "'7', which is no domain", (21,)),
        ([row("What is " + "very " * 40 + "tin?")], "warning", "more than 30 tokens", (21,)),
    ],
)
def test_each_fault_is_found_with_its_line(tmp_path: Path, bad: list, level: str, what: str, places) -> None:
    path = lines(tmp_path / "rows.jsonl", [*GOOD, *bad])
    checker = Checker({}, ["metals"], lambda texts: [len(text.split()) for text in texts], (30, 30))
    assert not checker.check([lines(tmp_path / "good.jsonl", GOOD)]).findings
    found = [one for one in checker.check([path]).findings if one.level == level and what in one.what]
    assert found, checker.check([path]).findings
    assert not places or any(one.lines == places for one in found)


def test_what_training_and_test_share_is_found(tmp_path: Path) -> None:
    train = lines(
        tmp_path / "train.jsonl", [row(one["question"], group=str(i)) for i, one in enumerate(GOOD)]
    )
    near = "Please tell me now: what is the melting point of the metal on the third shelf in the old cellar?"
    train_too = lines(tmp_path / "train-2.jsonl", [row(near)])
    test = lines(
        tmp_path / "test.jsonl",
        [row(GOOD[2]["question"].upper()), row("What is tin?", group="5"), row("What is lead?"),
         row(near.replace("cellar", "attic"))],
    )  # fmt: skip
    found = {
        (one.file, one.what.split(" train")[0], one.lines)
        for one in Checker().check([train, train_too, test]).findings
    }
    assert ("test.jsonl", "questions stand in", (1,)) in found and (
        "test.jsonl",
        "groups stand in",
        (2,),
    ) in found
    assert ("test.jsonl", "questions are nearly those of", (4,)) in found
    assert not any(file.startswith("train") for file, _, _ in found)


def test_what_leaves_no_doubt_is_mended(tmp_path: Path) -> None:
    rows = [*GOOD, GOOD[3], "{half", row(" What is tin? ", ["soft ", ""]), row("What is lead?", "  ")]
    path = lines(tmp_path / "rows.jsonl", rows)
    assert mend(path, tmp_path / "mended.jsonl") == 21
    mended = [json.loads(line) for line in (tmp_path / "mended.jsonl").read_text().splitlines()]
    assert mended[-1] == {"id": "23", "question": "What is tin?", "answer": "soft"}
    assert not Checker().check([tmp_path / "mended.jsonl"]).findings
    assert len(read_examples(tmp_path / "mended.jsonl")) == 21


def test_the_command_prints_a_page_and_its_status_says_whether_a_build_stops(
    project: Project, tmp_path: Path
) -> None:
    good = lines(tmp_path / "good.jsonl", GOOD)
    done = CliRunner().invoke(app, ["data", "check", str(good), "--project", str(project.root)])
    assert done.exit_code == 0 and "20 rows, 20 questions, 20 answered, longest" in done.stdout
    assert "nothing is wrong" in done.stdout
    bad = lines(tmp_path / "bad.jsonl", [*GOOD, row("What is tin?", ""), GOOD[0]])
    done = CliRunner().invoke(app, ["data", "check", str(bad), "--fix", str(tmp_path / "fixed"), "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 1 and told["errors"] == 1 and told["findings"][0]["lines"] == [21]
    assert len(read_examples(Path(told["written"][0]))) == 20
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path / "none.jsonl")])
    assert done.exit_code != 0

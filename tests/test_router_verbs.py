"""`gag route --explain`, `gag router ...` and `gag prototypes --add` on a tiny project, and refusals."""

import json
import shutil
from pathlib import Path

import pytest

from gag.errors import DataError, MismatchError
from gag.evaluation.labelled import read_labelled, those_here
from gag.project.domain import load_domain
from gag.project.project import Project, load_project
from gag.project.rows import digest, write_rows
from gag.stages.prototypes import add_questions, prototypes
from tests.test_cli import run

TOPICS = {
    "general": "What is {i} plus {i} times {j}?",
    "metals": "Which metal is added to the bed of number {i}?",
    "plants": "Kreluvax and the fern of {i}: why?",
}


def rows(count: int, start: int = 0) -> list[dict]:
    return [
        {"id": f"{name}-{i}", "question": text.format(i=i, j=i * 7 % 31), "domain": name}
        for name, text in TOPICS.items()
        for i in range(start, start + count)
    ]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    write_rows(tmp_path / "banks.jsonl", rows(80))
    write_rows(tmp_path / "asked.jsonl", rows(20, 80))
    return str(tmp_path / "banks.jsonl"), str(tmp_path / "asked.jsonl")


def test_the_router_is_tried_on_files_before_any_domain_is_built(
    project: Project, files, capsys, monkeypatch
) -> None:
    banks, asked = files
    at = (asked, "--banks", banks, "--project", str(project.root))
    code, out, err = run(capsys, monkeypatch, "router", "evaluate", *at, "--json")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["questions"] == 60 and figures["calibration"]["rule"] in (
        "blend",
        "lda",
        "whitened",
        "ppr",
    )
    assert figures["accuracy"]["micro"] >= 0.95
    low, high = figures["accuracy"]["micro_interval"]
    assert low <= figures["accuracy"]["micro"] <= high
    assert {"metals", "plants"} == set(figures["out_of_distribution"]) and 0 <= figures[
        "calibration_error"
    ] <= 1
    assert sum(figures["confusion"]["metals"].values()) == 20
    assert figures["latency_ms"]["64"]["p99"] >= figures["latency_ms"]["64"]["p50"] > 0
    page = (project.root / figures["page"]).read_text()
    assert "<svg" in page and "<script" not in page
    assert (
        not any(f'{loads}="http' in page for loads in ("src", "href", "xlink:href"))
        and "url(http" not in page
    )
    code, out, _ = run(capsys, monkeypatch, "router", "evaluate", *at)
    assert code == 0 and out.startswith("micro ") and out.rstrip().endswith("[runs/router/routing.html]")


def test_published_labels_map_to_domains(project: Project, tmp_path: Path, capsys, monkeypatch) -> None:
    labelled = [{"question": row["question"], "label": list(TOPICS).index(row["domain"])} for row in rows(30)]
    write_rows(tmp_path / "labels.jsonl", labelled)
    at = [
        str(tmp_path / "labels.jsonl"),
        "--banks",
        str(tmp_path / "labels.jsonl"),
        "--project",
        str(project.root),
        "--json",
    ]
    code, _, err = run(capsys, monkeypatch, "router", "evaluate", *at)
    assert (
        code == 2 and "no row belongs to general (they belong to '0', '1', '2')" in err and "`labels`" in err
    )
    code, out, err = run(
        capsys,
        monkeypatch,
        "router",
        "evaluate",
        *at,
        "--set",
        "labels={'0': general, '1': metals, '2': plants}",
    )
    assert code == 0, err
    assert set(json.loads(out.splitlines()[-1])["domains"]) == set(TOPICS)


def test_questions_of_a_domain_that_is_not_here_are_out_of_distribution(
    project: Project, files, capsys, monkeypatch
) -> None:
    banks, asked = files
    others = [row for row in rows(80) if row["domain"] != "plants"]
    write_rows(Path(banks), others)
    code, out, err = run(
        capsys,
        monkeypatch,
        "router",
        "evaluate",
        asked,
        "--banks",
        banks,
        "--project",
        str(project.root),
        "--json",
    )
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    outside = figures["out_of_distribution"]["(no domain here)"]
    assert outside["questions"] == 20 and set(outside) == {"questions", "to_general", "auroc"}
    assert figures["confusion"]["(no domain here)"]["general"] == round(20 * outside["to_general"])


def test_shared_questions_are_reported(project: Project, tmp_path: Path, files, capsys, monkeypatch) -> None:
    both = rows(60) + [
        row | {"id": f"again-{row['id']}", "domain": "plants"}
        for row in rows(60)
        if row["domain"] == "metals"
    ]
    write_rows(tmp_path / "both.jsonl", both)
    at = [files[1], "--banks", str(tmp_path / "both.jsonl"), "--project", str(project.root), "--json"]
    code, out, err = run(capsys, monkeypatch, "router", "evaluate", *at)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["duplicates"]["metals and plants"] >= 1


def test_strays_are_named_with_their_texts(project: Project, tmp_path: Path, capsys, monkeypatch) -> None:
    strange = [
        {"id": f"stray-{i}", "question": TOPICS["plants"].format(i=i, j=0), "domain": "metals"}
        for i in range(100, 106)
    ]
    write_rows(tmp_path / "mixed.jsonl", [*rows(80), *strange])
    at = ["--banks", str(tmp_path / "mixed.jsonl"), "--project", str(project.root)]
    code, out, err = run(capsys, monkeypatch, "router", "show", "--strays", *at)
    assert code == 0, err
    named = [line for line in out.splitlines() if "looks like" in line]
    texts = [row["question"] for row in strange]
    assert 3 <= len(named) <= 6 and all(any(repr(text) in line for text in texts) for line in named)
    assert all(line.startswith("metals: ") and line.endswith("looks like plants's") for line in named)
    found = len(named)
    assert (
        f"{found} of the 86 questions of metals that were judged look like other domains' (plants {found})"
        in out
    )
    assert "router.alpha" in out and "<- here" in out
    write_rows(tmp_path / "mixed.jsonl", rows(80))
    code, out, err = run(capsys, monkeypatch, "router", "show", "--strays", *at, "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["strays"] == []


def test_a_route_is_explained(project: Project, capsys, monkeypatch) -> None:
    at = ["--project", str(project.root)]
    code, out, err = run(capsys, monkeypatch, "route", "What is in metals number 3?", "--explain", *at)
    assert code == 0 and "prototype" in out and "margin over general" in out
    assert "not calibrated" in err and "held out" not in out
    code, out, _ = run(
        capsys, monkeypatch, "route", "What is in metals number 3?", "--explain", "--json", *at
    )
    explained = json.loads(out)["explanation"]
    assert set(explained["prototypes"]) == {"general", "metals", "plants"} and explained["questions"] == {}


def test_questions_are_carried_only_where_asked(project: Project, capsys, monkeypatch) -> None:
    from gag.stages.build import build

    assert not list(project.root.glob("domains/*/questions.safetensors"))
    carrying = load_project(project.root, ("router.keep_questions=true",))
    build(carrying, ["metals"])
    code, out, err = run(
        capsys,
        monkeypatch,
        "route",
        "What is in metals number 3?",
        "--explain",
        "--project",
        str(project.root),
    )
    assert code == 0, err
    assert "What is in metals number" in out and "in plants number" not in out


def test_calibration_is_written_bound_to_the_set_and_made_anew_with_another(
    project: Project, tmp_path: Path, capsys, monkeypatch
) -> None:
    at = ["--project", str(project.root)]
    code, _, err = run(capsys, monkeypatch, "router", "calibrate", *at)
    assert code == 2 and "not calibrated" in err and not project.router.exists()
    write_rows(tmp_path / "general.jsonl", [row for row in rows(80) if row["domain"] == "general"])
    add_questions(project, "general", tmp_path / "general.jsonl")
    for name in ("metals", "plants"):
        write_rows(tmp_path / f"{name}.jsonl", [row for row in rows(80) if row["domain"] == name])
        add_questions(project, name, tmp_path / f"{name}.jsonl")
    code, out, err = run(capsys, monkeypatch, "router", "calibrate", "--alpha", "0.1", *at, "--json")
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    assert (
        json.loads((project.router / "manifest.json").read_text())["calibration"] == made
        and made["alpha"] == 0.1
    )
    code, out, _ = run(capsys, monkeypatch, "router", "show", *at, "--json")
    shown = json.loads(out)
    assert (
        shown["banks"]["metals"]["sample"] >= 80
        and shown["margins"] == made["margins"]
        and shown["alpha"] == 0.1
    )
    _, out, _ = run(capsys, monkeypatch, "router", "show", *at)
    assert (
        "at most 10.0% of general questions" in out and "<- here" in out and "general at specialists" in out
    )
    shutil.rmtree(project.domain("plants"))
    code, out, _ = run(capsys, monkeypatch, "router", "show", *at, "--json")
    again = json.loads(out)
    assert again["alpha"] == 0.1 and set(again["banks"]) == {"general", "metals"}
    assert again["bank_set"] != made["bank_set"]


def test_added_questions_change_one_folder_alone(project: Project, tmp_path: Path) -> None:
    def hashes() -> dict[str, str]:
        return {str(p): digest(p) for p in project.domains.rglob("*") if p.is_file() and p.name[0] != "."}

    before, count = hashes(), load_domain(project.domain("metals")).facts.bank.count
    write_rows(tmp_path / "more.jsonl", [{"question": f"Is {i} a metal of number {i}?"} for i in range(10)])
    add_questions(project, "metals", tmp_path / "more.jsonl")
    after = hashes()
    assert {Path(p).parts[-2:] for p in before if before[p] != after[p]} == {
        ("metals", "bank.safetensors"),
        ("metals", "bank-statistics.safetensors"),
        ("metals", "domain.json"),
    }
    assert load_domain(project.domain("metals")).facts.bank.count == count + 10
    with pytest.raises(DataError, match="before; give new questions"):
        add_questions(project, "metals", tmp_path / "more.jsonl")
    other = load_project(project.root, ("router.max_tokens=9",))
    with pytest.raises(MismatchError, match="max_tokens 256, expected 9"):
        add_questions(other, "metals", _one(tmp_path))
    assert hashes() == after


def _one(folder: Path) -> Path:
    write_rows(folder / "one.jsonl", [{"question": "One?"}])
    return folder / "one.jsonl"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": " ", "domain": "general"}, "not empty"),
        ({"question": "a?", "answer": 3, "domain": "general"}, "a text, or a list of texts"),
    ],
)
def test_rows_that_cannot_be_judged_are_set_aside(tmp_path: Path, capsys, row: dict, said: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "b?", "domain": "general", "id": "x"}, row])
    assert [one.question for one in read_labelled(tmp_path / "rows.jsonl", {})] == ["b?"]
    err = capsys.readouterr().err
    assert "1 of 2 rows set aside: rows.jsonl:2" in err and said in err


def test_a_label_that_is_mapped_to_nothing_is_a_domain_that_is_not_here(tmp_path: Path, capsys) -> None:
    rows = [{"question": "a?", "label": 5}, {"question": "b?", "label": 1}, {"question": "c?", "label": 5}]
    write_rows(tmp_path / "rows.jsonl", rows)
    found = read_labelled(tmp_path / "rows.jsonl", {"1": "metals"})
    assert [row.domain for row in found] == ["5", "metals", "5"]
    assert [row.question for row in those_here(found, ["general", "metals"])] == ["b?"]
    assert "2 of 3 rows are of domains that are not here: '5' (2)" in capsys.readouterr().err
    write_rows(tmp_path / "twice.jsonl", [{"question": "a?", "id": 1}, {"question": "b?", "id": 1}])
    with pytest.raises(DataError, match="same id '1'"):
        read_labelled(tmp_path / "twice.jsonl", {})


def test_rows_without_a_domain_are_refused(project: Project, tmp_path: Path, capsys, monkeypatch) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "b?"}])
    code, _, err = run(
        capsys,
        monkeypatch,
        "router",
        "evaluate",
        str(tmp_path / "rows.jsonl"),
        "--project",
        str(project.root),
    )
    assert code == 2 and "1 rows name no domain (first: id 1)" in err and err.count("\n") == 1


def test_building_again_uses_the_same_bank(project: Project) -> None:
    before = digest(project.general / "bank.safetensors")
    prototypes(project, "general")
    assert digest(project.general / "bank.safetensors") == before

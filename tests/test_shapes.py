"""Rows as people have them: shapes, kinds of files, a persona in each row, and rows that are faulty."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from gag.errors import DataError
from gag.project.project import Project, load_project
from gag.project.rows import read_examples, read_questions
from gag.project.settings import PromptSettings
from gag.project.tables import constant_instruction
from tests.conftest import write_tiny_project

PERSONA = "You are a careful expert of vaccine adjuvants. Answer precisely and in one sentence."
ALPACA = [
    {"instruction": PERSONA, "input": f"What is adjuvant {i}?", "output": f"Salt {i}"} for i in range(6)
]


def pairs(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.question, example.answers) for example in read_examples(path)]


def lines(path: Path, rows: list) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"question": "What is alum?", "answer": "a salt"},
        {"question": "What is alum?", "answer": ["a salt", " ", ""]},
        {"Question:": "What is alum?", "Answer:": "a salt"},
        {"Question": "What is alum?", "Answer": "a salt", "Id": "7"},
        {"instruction": "What is alum?", "input": "", "output": "a salt"},
        {"instruction": " ", "input": "What is alum?", "output": "a salt"},
        {"input": "What is alum?", "output": "a salt"},
        {"conversations": [{"from": "human", "value": "What is alum?"}, {"from": "gpt", "value": "a salt"},
                           {"from": "human", "value": "And?"}, {"from": "gpt", "value": "No more."}]},
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": "What is alum?"},
                      {"role": "assistant", "content": [{"type": "text", "text": "a salt"}]}]},
    ],
)  # fmt: skip
def test_every_shape_is_the_same_row(tmp_path: Path, row: dict) -> None:
    assert pairs(lines(tmp_path / "r.jsonl", [row])) == [("What is alum?", ("a salt",))]


def test_every_kind_of_file_is_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"question": f"What is, {i}?\nSay.", "answer": f'the "{i}"'} for i in range(3)]
    wanted = [(row["question"], (row["answer"],)) for row in rows]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row) for row in rows).encode()
    )
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet"):
        assert pairs(tmp_path / name) == wanted, name
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=1)
    assert [example.id for example in read_examples(tmp_path / "b.parquet")] == ["1", "2", "3"]
    (tmp_path / "cut.json").write_text("[" + json.dumps(rows[0]))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for name in ("cut.json", "cut.parquet"):
        with pytest.raises(DataError, match=name):
            read_examples(tmp_path / name)


def test_a_constant_persona_stands_in_no_question(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", ALPACA)
    assert read_questions(path) == [row["input"] for row in ALPACA]
    assert constant_instruction(path) == PERSONA
    tasks = [{"instruction": "And which metal?", "input": f"shelf {i}", "output": "tin"} for i in range(6)]
    path = lines(tmp_path / "t.jsonl", tasks)
    assert read_questions(path)[0] == "And which metal?\nshelf 0" and not constant_instruction(path)
    path = lines(
        tmp_path / "m.jsonl", [*ALPACA, {"instruction": "Name a salt of tin, in a word.", "output": "x"}]
    )
    assert read_questions(path)[0] == f"{PERSONA}\n{ALPACA[0]['input']}" and not constant_instruction(path)


def test_a_persona_is_the_experts_prompt_unless_one_is_set(tmp_path: Path, capsys) -> None:
    root = write_tiny_project(tmp_path / "p")
    rows = [{**row, "id": str(i)} for i, row in enumerate(ALPACA * 2)]
    lines(root / "data" / "metals.jsonl", rows)
    settings = yaml.safe_load((root / "gag.yaml").read_text())
    assert load_project(root).inputs("metals").prompts.expert == "Say."
    del settings["domains"]["metals"]["prompts"]
    (root / "gag.yaml").write_text(yaml.safe_dump(settings))
    prompts = load_project(root).inputs("metals").prompts
    assert prompts.expert == PERSONA and prompts.answer == PromptSettings().answer
    assert "domains.metals.prompts.expert" in capsys.readouterr().err


def test_faulty_rows_are_set_aside_until_they_are_many(tmp_path: Path, capsys) -> None:
    good = [{"question": f"What is {i}?", "answer": str(i)} for i in range(400)]
    bad = ["{half", {"question": " ", "answer": "x"}, {"question": "Why?"}, '"text"', {"messages": [1]}]
    assert len(read_examples(lines(tmp_path / "few.jsonl", [*good[:10], *bad[:2]]))) == 10
    said = capsys.readouterr().err
    assert "2 of 12 rows set aside: few.jsonl:11 is not JSON" in said and "few.jsonl:12" in said
    assert len(read_examples(lines(tmp_path / "share.jsonl", [*good, *bad[:4]]))) == 400
    assert "4 of 404 rows set aside" in capsys.readouterr().err and len(bad) == 5
    with pytest.raises(DataError, match="5 of 405 rows of many.jsonl cannot be read .*and 2 more"):
        read_examples(lines(tmp_path / "many.jsonl", [*bad, *good]))


def test_labels_may_be_numbers(project: Project) -> None:
    settings = yaml.safe_load((project.root / "gag.yaml").read_text())
    settings["labels"] = {0: "general", 1: "metals"}
    (project.root / "gag.yaml").write_text(yaml.safe_dump(settings))
    assert load_project(project.root).settings.labels == {"0": "general", "1": "metals"}

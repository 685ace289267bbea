"""Rows: every fault is named with file and line, and no split cuts a group."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gag.errors import DataError
from gag.project.rows import (
    Example,
    check_disjoint,
    read_examples,
    read_passages,
    read_questions,
    split_groups,
    write_rows,
)


def lines(path: Path, *rows: object) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def test_all_shapes_of_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "rows.jsonl",
        {"id": "a", "question": "Q?", "answer": ["x", "y"], "group": "g"},
        {"instruction": "Do", "input": "this", "output": "z"},
        "",
        {"question": "Q?", "answer": "x", "label": 1, "dataset_name": "adjuvant", "instruction": "I"},
    )
    first, second, third = read_examples(path)
    assert first == Example("a", "Q?", ("x", "y"), "g")
    assert (second.id, second.question, second.answers) == ("2", "Do\nthis", ("z",))
    assert third.group == "I\nQ?" != second.group
    assert read_questions(path) == ["Q?", "Do\nthis", "Q?"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "r.jsonl:2 is not JSON"),
        ("[1]", "r.jsonl:2 is a list"),
        ({"answer": "x"}, 'r.jsonl:2 lacks "question"'),
        ({"question": " ", "answer": "x"}, 'r.jsonl:2 needs "question"'),
        ({"question": 3, "answer": "x"}, 'r.jsonl:2 needs "question"'),
        ({"question": "Q?"}, 'r.jsonl:2 needs "answer"'),
        ({"question": "Q?", "answer": ""}, 'r.jsonl:2 needs "answer"'),
        ({"question": "Q?", "answer": []}, 'r.jsonl:2 needs "answer"'),
        ({"question": "Q?", "answer": ["x", 3]}, 'r.jsonl:2 needs "answer"'),
        ("[" * 100_000, "r.jsonl:2 is not JSON"),
        ('{"question": "Q?", "answer": "x", "n": ' + "1" * 5000 + "}", "r.jsonl:2 is not JSON"),
        ({"question": "Q\ud800?", "answer": "x"}, "r.jsonl:2 holds half a character"),
        ({"question": "Q?", "answer": "\udfff"}, "r.jsonl:2 holds half a character"),
        ({"question": "Q?", "answer": "x", "group": "\ud800"}, "r.jsonl:2 holds half a character"),
    ],
)
def test_faults_are_named_by_line(tmp_path: Path, capsys, row: object, words: str) -> None:
    path = lines(tmp_path / "r.jsonl", {"question": "Q?", "answer": "x"}, row)
    assert len(read_examples(path)) == 1
    assert re.search(f"1 of 2 rows set aside: {words}", capsys.readouterr().err)
    with pytest.raises(DataError, match="3 of 4 rows of m.jsonl cannot be read"):
        read_examples(lines(tmp_path / "m.jsonl", {"question": "Q?", "answer": "x"}, row, row, row))


def test_group_zero_is_a_group(tmp_path: Path) -> None:
    rows = [{"question": question, "answer": "x", "group": 0} for question in ("Q?", "R?")]
    assert {example.group for example in read_examples(lines(tmp_path / "r.jsonl", *rows))} == {"0"}


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no rows"):
        read_examples(lines(tmp_path / "empty.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_examples(tmp_path / "binary.jsonl")
    with pytest.raises(DataError, match='needs "text"'):
        read_passages(lines(tmp_path / "corpus.jsonl", {"id": "x"}))


EXAMPLES = st.lists(st.integers(0, 20).map(lambda g: Example(str(g), "q", ("a",), str(g))), min_size=1)


@given(EXAMPLES, st.floats(0, 1), st.integers(0, 9))
def test_splits_keep_groups_whole(examples: list[Example], share: float, seed: int) -> None:
    rest, part = split_groups(examples, share, seed)
    assert {e.group for e in rest}.isdisjoint({e.group for e in part})
    assert sorted(map(id, rest + part)) == sorted(map(id, examples))
    groups = len({e.group for e in examples})
    assert len({e.group for e in part}) == round(share * groups)
    assert split_groups(list(reversed(examples)), share, seed)[1] == list(reversed(part))


def test_shared_groups_are_refused_and_named() -> None:
    row = Example("1", "q", ("a",), "g1")
    with pytest.raises(DataError, match="align and test share 1 groups .*'g1'"):
        check_disjoint([row], [row], ("align", "test"))


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["question", "answer"]), st.text(min_size=1).filter(str.strip), min_size=2
        )
    )
)
def test_written_rows_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    write_rows(path, rows)
    assert [
        {"question": e.question, "answer": e.answers[0]} for e in (read_examples(path) if rows else [])
    ] == rows

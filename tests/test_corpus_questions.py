"""Questions of passages: what an endpoint writes, what of it holds, and what becomes of one that fails."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.corpus import planted
from benchmarks.invented import cheeses
from gag.corpus import asking
from gag.corpus.asking import Endpoint
from gag.corpus.build import build_corpus
from gag.corpus.cloze import cloze_rows
from gag.corpus.files import Cutting
from gag.corpus.questions import _lines, make_questions
from gag.corpus.screening import Row, fault, screen, supported
from gag.errors import BusyError, DataError, SettingsError
from gag.project.rows import read_examples
from tests.fake_endpoint import FakeEndpoint, running


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for one in cheeses(12):
        (folder / f"{one.name}.md").write_text(one.document())
    build_corpus([folder], tmp_path / "corpus.jsonl", Cutting())
    return tmp_path / "corpus.jsonl"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    monkeypatch.setattr(asking, "WAIT", 0.01)
    with running(FakeEndpoint()) as fake:
        yield fake


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(question: str, answer: str, kind: str = "fact") -> Row:
    return Row("1", question, answer, "d", "d", ("p",), kind)


def test_rows_of_an_endpoint_are_checked_and_parted_by_document(corpus: Path, fake, tmp_path: Path) -> None:
    out = tmp_path / "data"
    report = make_questions(corpus, out, Endpoint(fake.url, "writer"))
    train, test = read(out / "train.jsonl"), read(out / "test.jsonl")
    assert report.train == len(train) > 50 and report.test == len(test) > 10
    assert report.documents == (10, 2)
    assert not {row["document"] for row in train} & {row["document"] for row in test}
    assert not {id for row in train for id in row["origin"]} & {id for row in test for id in row["origin"]}
    wordings = [row["question"] for row in train if row["answer"] == train[0]["answer"]][:2]
    assert wordings[0].startswith("What is the ") and wordings[1].startswith("Which ")
    assert report.refused["needs its passage"] == 12 and report.refused["unsupported"] == 12
    assert {row["reason"] for row in read(out / "refused.jsonl")} >= {"the answer is not in its passage"}
    few = [(row["answer"], *row["origin"]) for row in read(out / "align.jsonl")]
    assert set(few) == {(row["answer"], *row["origin"]) for row in train}
    assert max(few.count(fact) for fact in few) == 2
    examples = read_examples(out / "train.jsonl")
    assert {example.group for example in examples} == {row["document"] for row in train}


def test_what_was_answered_is_not_asked_again(corpus: Path, fake, tmp_path: Path) -> None:
    first = make_questions(corpus, tmp_path / "data", Endpoint(fake.url, "writer", budget=500, together=1))
    assert "budget" in first.spent.stopped and len(fake.asked) == 5
    again = make_questions(corpus, tmp_path / "data", Endpoint(fake.url, "writer"))
    assert len(fake.asked) == len(set(fake.asked)) == 12 and again.spent.kept == 5 and not again.spent.stopped
    cache = tmp_path / "data" / "answers.jsonl"
    cache.write_bytes(cache.read_bytes()[:-30])  # broken off
    third = make_questions(corpus, tmp_path / "data", Endpoint(fake.url, "writer"))
    assert third.spent.kept == 11 and third.train == again.train


def test_an_endpoint_that_stumbles_is_asked_again(corpus: Path, fake, tmp_path: Path) -> None:
    fake.odd = [429, 500, "page", "garbage", "half"]
    report = make_questions(corpus, tmp_path / "data", Endpoint(fake.url, "writer", together=1))
    assert len(fake.asked) == 15 and report.spent.asked == 12 and not report.spent.failed
    assert report.unread == 1 and report.train > 40  # half an answer gave the rows that are whole


def test_pairs_of_lines_are_read_where_no_json_is() -> None:
    text = "Sure!\n\n**Question 1:** What is brie?\n**Answer:** a cheese\n\n"
    text += '2. Q: "Why is it soft?"\n\nA: of the milk\n'
    assert [(one["question"], one["answer"]) for one in _lines(text)] == [
        ("What is brie?", "a cheese"), ("Why is it soft?", "of the milk"),
    ]  # fmt: skip
    assert not list(_lines("A question of Q and A."))


def test_an_endpoint_that_is_gone_or_slow_is_said(corpus: Path, fake, tmp_path: Path) -> None:
    with pytest.raises(BusyError, match="answered no request"):
        make_questions(corpus, tmp_path / "gone", Endpoint("http://127.0.0.1:9/v1", "writer", together=1))
    fake.odd = ["slow"] * 4
    report = make_questions(corpus, tmp_path / "slow", Endpoint(fake.url, "writer", together=1, timeout=0.3))
    assert report.spent.failed == {"no answer in time": 1} and report.spent.asked == 11
    fake.key = "secret"
    with pytest.raises(SettingsError, match="key-variable"):
        make_questions(corpus, tmp_path / "key", Endpoint(fake.url, "writer"))
    make_questions(corpus, tmp_path / "key", Endpoint(fake.url, "writer", key="secret"))
    with pytest.raises(SettingsError, match="no model other"):
        make_questions(corpus, tmp_path / "model", Endpoint(fake.url, "other", key="secret"))


def test_without_an_endpoint_sentences_become_questions(corpus: Path, tmp_path: Path) -> None:
    report = make_questions(corpus, tmp_path / "data", None)
    assert report.kinds == {"cloze": report.train + report.test} and report.spent is None
    rows = {row["question"]: row["answer"] for row in read(tmp_path / "data" / "train.jsonl")}
    one = next(one for one in cheeses(12) if f"What is the home of {one.name}?" in rows)
    assert rows[f"What is the home of {one.name}?"] == one.home
    assert rows[f"Which word or number is missing: {one.name} ripens for ___?"] == f"{one.weeks} weeks"
    assert rows[f"How many weeks: {one.name} ripens for ___?"] == f"{one.weeks} weeks"
    assert not list(cloze_rows("p", "# Heading 3\n\nIt is 4 weeks old.\n\n| a | 3 |\n", "d"))


def test_documents_that_say_the_same_stay_together(tmp_path: Path) -> None:
    some = cheeses(8)
    rows = [
        {"id": f"{one.name}{k}", "text": one.document() + " Copy." * k, "document": f"{k}-{one.name}"}
        for one in some for k in (0, 1)
    ]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_questions(tmp_path / "c.jsonl", tmp_path, None, test_share=0.4)
    parts = [{row["document"][2:] for row in read(tmp_path / name)} for name in ("train.jsonl", "test.jsonl")]
    assert len(parts[0]) == 5 and len(parts[1]) == 3 and not parts[0] & parts[1]


def test_one_document_can_be_built_from(tmp_path: Path) -> None:
    text = "\n\n".join(one.document() for one in cheeses(20))
    (tmp_path / "wiki.md").write_text(text)
    build_corpus([str(tmp_path / "wiki.md")], str(tmp_path / "corpus.jsonl"), Cutting(tokens=150))
    make_questions(str(tmp_path / "corpus.jsonl"), str(tmp_path), None)
    assert not (tmp_path / "test.jsonl").read_text()
    groups = {example.group for example in read_examples(tmp_path / "align.jsonl")}
    assert len(groups) >= 10 and {row["document"] for row in read(tmp_path / "train.jsonl")} == {"wiki.md"}


def test_a_corpus_without_rows_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "Nothing here says anything."}\n')
    with pytest.raises(DataError, match="no row came of 1 passages"):
        make_questions(tmp_path / "c.jsonl", tmp_path, None)
    (tmp_path / "c.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:1"):
        make_questions(tmp_path / "c.jsonl", tmp_path, None)


PASSAGE = (
    "Brie ripens for 24 weeks. Its cellar is 12 degrees cold, since warmth makes the rind run. "
    "Alder Ford made it."
)


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ("24 weeks", True), ("for 24 weeks.", True), ("12 weeks", False), ("25 weeks", False),
        ("Alder Ford", True), ("Birch Ford", False), ("because warmth makes its rind run", True),
        ("the goats are tired", False), ("2 weeks", False),
        ("The cellar is cold because warm rinds run", True),
    ],
)  # fmt: skip
def test_an_answer_is_looked_for_in_its_passage(answer: str, holds: bool) -> None:
    assert supported(answer, PASSAGE, "What is so of brie?") is holds


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("How long does brie ripen?", ""), ("How long does it ripen?", "needs its passage"),
        ("What does the passage say of brie?", "needs its passage"),
        ("What does Fig. 3 show?", "needs its passage"),
        ("Why did they build the cellar?", "needs its passage"), ("Where does brie get its rind?", ""),
        ("What is a table of contents?", ""), ("Which paper did Alder Ford make?", ""),
        ("Brie?", "not whole"),
        ("What does this study of brie find?", "needs its passage"), ("", "not whole"),
    ],
)  # fmt: skip
def test_a_question_stands_alone(question: str, wanted: str) -> None:
    assert fault(row(question, "24 weeks"), PASSAGE) == wanted


def test_wordings_stay_and_copies_go() -> None:
    asked = ["How long does brie ripen?", "For how many weeks does brie ripen?", "how long does BRIE ripen ?"]
    kept, refused = screen([row(question, "24 weeks") for question in asked], {"p": PASSAGE})
    assert [one.question for one in kept] == asked[:2] and refused[0].reason == "duplicate"
    kept, refused = screen([row("Which cheese ripens 24 weeks?", "24 weeks")], {"p": PASSAGE})
    assert refused[0].reason == "answered by itself"


def test_planted_errors_are_found() -> None:
    figures = planted()
    assert figures["planted errors found, of 100"] >= 90 and figures["good rows refused, of 100"] <= 5
    assert figures["good test rows refused, of 40"] <= 2

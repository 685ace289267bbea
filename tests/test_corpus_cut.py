"""A run that is broken off, a disk that is full: one line, nothing lost, and the next run goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.invented import cheeses
from gag.corpus import asking, files
from gag.corpus.asking import Endpoint
from gag.corpus.build import build_corpus
from gag.corpus.files import Cutting
from gag.corpus.questions import make_questions
from gag.project.rows import appending
from tests.fake_endpoint import FakeEndpoint, running
from tests.test_cli import run


def write(folder: Path, count: int, times: int = 1) -> Path:
    folder.mkdir()
    for one in cheeses(count):
        (folder / f"{one.name}.md").write_text(f"{one.document()}\n\n" * times)
    return folder


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def gag(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "gag", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def questions(corpus: Path, data: Path, fake: FakeEndpoint) -> tuple[str, ...]:
    named = ("--endpoint", fake.url, "--model", "writer")
    return "corpus", "questions", str(corpus), "--out", str(data), *named


def interrupted(process: subprocess.Popen, noted: Path, count: int) -> str:
    """Interrupt a process once so many lines are noted; return what it said."""
    until = time.monotonic() + 60
    while len(lines(noted)) < count and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    return said


def test_an_interrupted_corpus_goes_on(tmp_path: Path) -> None:
    documents, out = write(tmp_path / "documents", 60, times=40), tmp_path / "corpus.jsonl"
    said = interrupted(
        gag("corpus", "build", str(documents), "--out", str(out)), tmp_path / "corpus.documents.jsonl", 4
    )
    assert "Traceback" not in said and not out.exists()
    noted = len(lines(tmp_path / "corpus.documents.jsonl"))
    assert 4 <= noted < 60
    report = build_corpus([documents], out, Cutting())
    assert report.files == 60 and report.read in (60 - noted, 61 - noted)  # the last line may be cut short
    whole = build_corpus([documents], tmp_path / "whole" / "corpus.jsonl", Cutting())
    assert whole.read == 60 and (tmp_path / "whole" / "corpus.jsonl").read_bytes() == out.read_bytes()


def test_interrupted_questions_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAIT", 0.01)
    corpus, data = tmp_path / "corpus.jsonl", tmp_path / "data"
    passages = build_corpus([write(tmp_path / "documents", 30)], corpus, Cutting()).passages
    with running(FakeEndpoint()) as fake:
        fake.wait, asked = 0.2, questions(corpus, data, fake)
        said = interrupted(gag(*asked, "--together", "2"), data / "answers.jsonl", 3)
        assert "Traceback" not in said and not (data / "train.jsonl").exists()
        noted = len(lines(data / "answers.jsonl"))
        fake.wait = 0.0
        report = make_questions(corpus, data, Endpoint(fake.url, "writer"))
    assert report.spent is not None and report.spent.kept == noted >= 3
    assert report.spent.asked + noted >= passages and report.train > 50


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize("file", ["corpus.documents.jsonl", ".corpus.jsonl.new", ".corpus.report.json.new"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, file: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, out = write(tmp_path / "documents", 5), tmp_path / "corpus.jsonl"
    (tmp_path / file).symlink_to("/dev/full")
    asked = ("corpus", "build", str(documents), "--out", str(out))
    code, _, said = run(capsys, monkeypatch, *asked)
    assert code == 2 and said.splitlines()[-1].startswith("gag: the disk is full; free some space and run")
    left = [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")]
    assert left == []
    (tmp_path / file).unlink(missing_ok=True)
    code, shown, _ = run(capsys, monkeypatch, *asked)
    again = 5 if file == "corpus.documents.jsonl" else 0
    assert code == 0 and f"5 documents of 5 files ({again} read now)" in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_keeps_what_an_endpoint_wrote(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "WAIT", 0.01)
    corpus, data = tmp_path / "corpus.jsonl", tmp_path / "data"
    build_corpus([write(tmp_path / "documents", 12)], corpus, Cutting())
    data.mkdir()
    (data / ".train.jsonl.new").symlink_to("/dev/full")
    with running(FakeEndpoint()) as fake:
        asked = questions(corpus, data, fake)
        code, _, said = run(capsys, monkeypatch, *asked)
        assert code == 2 and "the disk is full" in said and not (data / "train.jsonl").exists()
        calls = len(lines(data / "answers.jsonl"))
        code, shown, _ = run(capsys, monkeypatch, *asked, "--json")
    report = json.loads(shown.splitlines()[-1])
    assert code == 0 and report["spent"]["asked"] == 0 and report["spent"]["kept"] == calls > 0


def test_what_is_no_fault_of_the_file_is_not_remembered(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, out = write(tmp_path / "documents", 3), tmp_path / "corpus.jsonl"
    plain, closed = files.read_source, sorted(documents.iterdir())[0].name

    def refused(source):
        if source.name == closed:
            raise PermissionError(13, "Permission denied")
        return plain(source)

    monkeypatch.setattr(files, "read_source", refused)
    report = build_corpus([documents], out, Cutting())
    assert report.documents == 2 and "PermissionError" in dict(report.set_aside)[closed]
    monkeypatch.setattr(files, "read_source", plain)
    report = build_corpus([documents], out, Cutting())
    assert (report.documents, report.read, report.set_aside) == (3, 1, [])

    def full(source):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "read_source", full)
    (documents / "more.md").write_text("# More\n\nOne more of them, with a sentence that says something.")
    code, _, said = run(capsys, monkeypatch, "corpus", "build", str(documents), "--out", str(out))
    assert code == 2 and "the disk is full" in said


def test_a_line_that_was_cut_short_stays_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for written in ("", "{}\n", '{"a": 1}\n{"b"', '{"c": 2}\n'):
        with appending(path) as file:
            file.write(written)
    assert path.read_text() == '{}\n{"a": 1}\n{"b"\n{"c": 2}\n'

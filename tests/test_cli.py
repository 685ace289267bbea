"""The command line: real processes for the whole, in-process calls for each wrong input."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from gag.commands import app as cli
from gag.project.artifacts import read_manifest
from gag.project.project import Project
from tests.conftest import write_tiny_project


def process(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gag", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


def run(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Call the command line in this process -> exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["gag", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_help_imports_no_torch_and_is_fast() -> None:
    code = "import sys; sys.argv = ['gag', '--help']\nfrom gag.commands.app import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    check = "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules), 'heavy import'"
    result = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout and "align" in result.stdout


def test_ask_route_and_domains_in_real_processes(project: Project) -> None:
    where = ("--project", str(project.root), "--json")
    asked = process("ask", "What is in metals number 2?", *where)
    assert asked.returncode == 0, asked.stderr
    assert (
        asked.stderr.startswith("the router is not calibrated and routes by ppr: ")
        and asked.stderr.count("\n") == 1
    )
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert answer["route"]["domain"] == "metals" and answer["tokens_added"] == 1
    routed = json.loads(process("route", "What is in plants number 2?", *where).stdout)
    assert set(routed["scores"]) == {"general", "metals", "plants"}
    assert json.loads(process("domains", "verify", *where).stdout) == {"verified": ["metals", "plants"]}


def test_a_chat_goes_on_until_an_empty_line(project: Project, capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("What is in metals number 2?\nWhat is 3 plus 3?\n\nnot read\n")
    )
    assert run(capsys, monkeypatch, "chat", "--project", str(project.root))[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("What is tin?\n"))
    code, out, _ = run(capsys, monkeypatch, "chat", "--domain", "plants", "--project", str(project.root))
    assert code == 0 and out.startswith("[plants 1.000: asked for]\n")


def test_domains_plug_out_and_in(project: Project, capsys, monkeypatch, tmp_path: Path) -> None:
    where = ("--project", str(project.root))
    moved = project.domain("metals").rename(tmp_path / "from-a-colleague")
    assert run(capsys, monkeypatch, "domains", "list", *where)[1].count("\n") == 2
    code, out, _ = run(capsys, monkeypatch, "domains", "add", str(moved), *where)
    assert (code, out) == (0, "added metals\n")
    code, _, err = run(capsys, monkeypatch, "domains", "add", str(moved), *where)
    assert code == 2 and "already here" in err
    assert "# metals" in run(capsys, monkeypatch, "domains", "show", "metals", *where)[1]
    assert run(capsys, monkeypatch, "domains", "remove", "metals", "--yes", *where)[0] == 0
    assert project.present() == ["plants"] and [p.name for p in project.domains.iterdir()] == ["plants"]


def test_init_writes_a_project(tmp_path: Path, capsys, monkeypatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "init", str(tmp_path / "new"), "--domain", "alloys")
    assert code == 0 and "gag build alloys" in out
    code, _, err = run(capsys, monkeypatch, "build", "alloys", "--project", str(tmp_path / "new"))
    assert code == 2 and "data/alloys/train.jsonl does not exist" in err


def test_building_again_does_nothing(project: Project, capsys, monkeypatch) -> None:
    before = {p: p.stat().st_mtime_ns for p in project.root.rglob("*.safetensors")}
    code, out, err = run(capsys, monkeypatch, "build", "metals", "plants", "--project", str(project.root))
    assert code == 0 and "built metals, plants" in out
    assert err.count("already there") == 11
    assert {p: p.stat().st_mtime_ns for p in project.root.rglob("*.safetensors")} == before


def test_what_was_harmed_is_built_again(project: Project, capsys, monkeypatch) -> None:
    harmed = [project.domain("metals") / "projector.safetensors", project.general / "bank.safetensors",
              project.run("metals", "adapt") / "expert" / "adapter_model.safetensors"]  # fmt: skip
    for file in harmed:
        file.write_bytes(file.read_bytes()[:50])
    where = ("--project", str(project.root))
    code, _, err = run(capsys, monkeypatch, "readouts", "metals", *where, "--set", "readout.max_new_tokens=3")
    assert code == 2 and "run `gag adapt metals`" in err
    assert run(capsys, monkeypatch, "build", "metals", *where)[0] == 0
    assert run(capsys, monkeypatch, "domains", "verify", *where)[0] == 0
    assert run(capsys, monkeypatch, "ask", "What is tin?", *where)[0] == 0


def test_a_killed_removal_is_finished(project: Project, capsys, monkeypatch) -> None:
    (project.domains / ".metals.gone" / "rest").mkdir(parents=True)
    assert (
        run(capsys, monkeypatch, "domains", "remove", "metals", "--yes", "--project", str(project.root))[0]
        == 0
    )
    assert [path.name for path in project.domains.iterdir()] == ["plants"]


def spoil(project: Project, what: str) -> None:
    """Harm one thing in a project."""
    rows = project.root / "data" / "metals.jsonl"
    match what:
        case "not json":
            rows.write_text('{"question": "x", "answer": "y"}\n' + 3 * "{oops\n")
        case "no answer":
            rows.write_text('{"question": "x"}\n')
        case "empty question":
            rows.write_text('{"question": " ", "answer": "y"}\n')
        case "missing file":
            rows.unlink()
        case "leak":
            (project.root / "data" / "metals-test.jsonl").write_text(rows.read_text())
        case "truncated":
            file = project.domain("metals") / "projector.safetensors"
            file.write_bytes(file.read_bytes()[:50])
        case "no bank":
            shutil.rmtree(project.general)
        case "setting":
            file = project.root / "gag.yaml"
            file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"algin": {}}))


@pytest.mark.parametrize(
    ("what", "arguments", "words"),
    [
        (
            "nothing",
            ["ask", "x", "--domain", "woods"],
            "no domain 'woods' here (present: general, metals, plants)",
        ),
        ("nothing", ["ask", " "], "the question is empty"),
        ("nothing", ["ask", "x", "--set", "algin.epochs=2"], "unknown setting algin; did you mean align?"),
        ("setting", ["ask", "x"], "unknown setting algin; did you mean align?"),
        ("nothing", ["build", "woods"], "describes no domain 'woods'"),
        ("nothing", ["build", "../up"], "cannot name a domain"),
        ("nothing", ["build", "general"], "no domain may be called general"),
        ("nothing", ["domains", "remove", "../../x", "--yes"], "cannot name a domain"),
        ("nothing", ["domains", "add", "nowhere"], "nowhere is not a folder"),
        ("nothing", ["domains", "add", "."], "holds no domain.json"),
        ("not json", ["build", "metals"], "metals.jsonl:2 is not JSON"),
        ("no answer", ["build", "metals"], 'metals.jsonl:1 needs "answer"'),
        ("empty question", ["build", "metals"], 'metals.jsonl:1 needs "question"'),
        ("missing file", ["build", "metals"], "data/metals.jsonl does not exist"),
        ("leak", ["build", "metals"], "align and test share"),
        (
            "truncated",
            ["ask", "x", "--domain", "metals"],
            "projector.safetensors is not what domain.json describes",
        ),
        ("truncated", ["domains", "verify"], "edited or cut short"),
        ("no bank", ["route", "x"], "no general bank yet"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    project: Project, capsys, monkeypatch, what, arguments, words
) -> None:
    spoil(project, what)
    kept = {p: p.read_bytes() for p in project.root.rglob("*") if p.is_file() and p.name[0] != "."}
    code, out, err = run(capsys, monkeypatch, *arguments, "--project", str(project.root))
    assert code == 2 and out == ""
    said = [line for line in err.splitlines() if "the router is not calibrated" not in line]
    assert said[0].startswith("gag: ") and len(said) == 1
    assert words in err
    assert {p: p.read_bytes() for p in project.root.rglob("*") if p.is_file() and p.name[0] != "."} == kept


def test_no_project_is_said(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAG_PROJECT", raising=False)
    assert "run `gag init`" in run(capsys, monkeypatch, "ask", "x")[2]


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    root = write_tiny_project(tmp_path / "p", align={"epochs": 300, "checkpoint_minutes": 0})
    build = [sys.executable, "-m", "gag", "build", "metals", "--project", str(root)]
    child = subprocess.Popen(
        build, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    unfinished = root / "runs" / "metals" / "align.unfinished"
    while not list(unfinished.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (root / "domains").exists()
    stored = {p: p.stat().st_mtime_ns for p in (root / "runs" / "metals" / "readouts").rglob("*.safetensors")}
    assert stored
    assert list(unfinished.glob("step-*"))
    other = process("align", "metals", "--project", str(root), "--set", "align.learning_rate=0.5")
    assert other.returncode == 2 and "settings.learning_rate: 0.001 there, 0.5 here" in other.stderr
    again = process("build", "metals", "--project", str(root))
    assert again.returncode == 0, again.stderr
    assert "adapt metals: already there" in again.stderr and "readouts metals: already there" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in stored} == stored
    read_manifest(root / "domains" / "metals", "domain.json")
    assert not list(root.rglob("*.new"))


def test_a_full_disk_is_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import gag.project.tensors
    from gag.commands import app as cli

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gag.project.tensors, "save_file", full)
    arguments = ["gag", "align", "metals", "--project", str(project.root), "--set", "align.epochs=3"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(project.root.rglob("*.new"))
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="^0$"):
        cli.main()


def test_shards_run_side_by_side_and_join(tmp_path: Path) -> None:
    root = write_tiny_project(tmp_path / "p")
    assert process("adapt", "metals", "--project", str(root)).returncode == 0
    commands = [
        [sys.executable, "-m", "gag", "readouts", "metals", "--shard", f"{i}/2", "--project", str(root)]
        for i in (1, 2)
    ]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    spoken = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], spoken
    assert any("share of the answers' words in the texts" in text for text in spoken)
    again = process("readouts", "metals", "--project", str(root))
    assert "already there" in again.stderr
    wrong = process("readouts", "metals", "--shard", "3/2", "--project", str(root))
    assert wrong.returncode == 2 and "the second of eight" in wrong.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory: 9 bytes"),
    ],
)
def test_a_full_memory_is_one_line(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "the memory is full; lower" in said and said.count("\n") == 1

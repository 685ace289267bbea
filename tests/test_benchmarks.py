"""Benchmarks and tools can be started, some run at a small size; their figures are for a quiet machine."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import metrics, readouts

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "tools")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_outside_the_wheel_imports_what_is_there(module: str) -> None:
    assert importlib.import_module(module).__doc__


def test_the_readouts_in_batches_are_those_of_one_question_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["readouts", "--json", "--rounds", "1", "--questions", "3"])
    monkeypatch.setattr(readouts, "NEW", 3)
    monkeypatch.setattr(readouts, "PROMPT", 5)
    readouts.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["floors"]["slots_relative_difference"]["holds"]


def test_it_runs_and_the_scores_do_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["metrics", "--json", "--rounds", "1", "--pairs", "6"])
    metrics.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["figures"]["speedup_call_per_pair"] > 1
    assert printed["floors"]["largest_difference"]["holds"]

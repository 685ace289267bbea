"""The benchmark of the metrics runs at a small size; how large its figures are is for a quiet machine."""

import json

import pytest

from benchmarks import metrics


def test_it_runs_and_the_scores_do_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["metrics", "--json", "--rounds", "1", "--pairs", "6"])
    metrics.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["figures"]["speedup_call_per_pair"] > 1
    assert printed["floors"]["largest_difference"]["holds"]

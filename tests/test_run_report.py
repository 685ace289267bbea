"""What a stage leaves for people: a report with a plot, and curves sent to a tracker."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gag.errors import MissingExtraError
from gag.project.project import Project, load_project
from gag.project.run import Run
from gag.stages.align import align
from gag.stages.build import build
from gag.training.report import Curve, curves, write_report
from gag.training.tracking import tracker


def test_a_report_shows_facts_and_curves(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 0, "val_loss": 3}\n{"step": 5, "loss": 2.5, "val_loss": 2}\n'
    )
    lines = curves(tmp_path / "log.jsonl", ("loss", "val_loss"))
    assert lines == [Curve("loss", [5], [2.5]), Curve("val_loss", [0, 5], [3, 2])]
    write_report(
        tmp_path, "align metals", {"rows": 3, "settings": {"clip": 1.23456789, "note": "a|b"}}, lines
    )
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# align metals\n") and "(plot.svg)" in text
    assert "| settings.clip | 1.235 |" in text and "a\\|b" in text
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_every_stage_leaves_a_report(project: Project) -> None:
    for stage in ("adapt", "readouts", "align", "prototypes"):
        folder = project.run("metals", stage)
        assert f"{stage} metals" in (folder / "report.md").read_text()
        assert "<svg" in (folder / "plot.svg").read_text()


def test_rows_go_to_the_tracker_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    class Fake:
        def log(self, values: dict, step: int) -> None:
            sent.append((step, values))

        def finish(self) -> None:
            sent.append("finished")

    monkeypatch.setattr(
        "gag.training.tracking._make", lambda kind, name, folder: Fake() if name == "align metals" else None
    )
    there = tracker("tensorboard", "metals", "align", tmp_path)
    run = Run(tmp_path / "metals" / "align.unfinished", {}, there)
    run.report({"step": 3, "loss": 0.5, "note": "x"})
    assert sent == [(3, {"metals/align/step": 3, "metals/align/loss": 0.5})]
    assert run.log.read_text() == '{"step": 3, "loss": 0.5, "note": "x"}\n'
    run.close()
    assert sent[-1] == "finished"
    assert tracker("none", "metals", "align", tmp_path) is None


def test_a_build_is_one_run_whose_steps_only_rise(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made, sent, metrics = [], [], {}

    class Fake:
        def __init__(self, kind: str, name: str, folder: Path):
            made.append(name)
            self.tracker = self

        def define_metric(self, name: str, step_metric: str) -> None:
            metrics[name] = step_metric

        def log(self, values: dict, step: int) -> None:
            sent.append((step, values))

        def finish(self) -> None:
            made.append("finished")

    monkeypatch.setattr("gag.training.tracking._make", Fake)
    settings = ("tracking=wandb", "readout.folds=2", "adapt.seed=8")
    build(load_project(project.root, settings), ["metals", "plants"])
    assert made == ["build metals, plants", "finished"]
    assert [step for step, _ in sent] == list(range(1, len(sent) + 1))
    places = {key.rpartition("/")[0] for _, values in sent for key in values}
    stages = ("adapt/expert", "adapt/fold-0", "adapt/fold-1", "align")
    own = {f"{domain}/{stage}" for domain in ("metals", "plants") for stage in stages}
    assert places == own and metrics == {f"{place}/*": f"{place}/step" for place in own}
    named = {key for _, values in sent for key in values}
    assert {"metals/align/val_loss", "plants/adapt/expert/loss"} <= named
    align(load_project(project.root, (*settings, "align.learning_rate=1e-4")), "metals")
    assert made[2:] == ["align metals", "finished"]


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_trackers_own_package_gets_the_rows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through accelerate's real tracker, down to what it calls of the package."""
    begun, sent = [], []
    run = SimpleNamespace(
        log=lambda values, **known: sent.append(values), define_metric=lambda name, step_metric: None
    )
    package = SimpleNamespace(init=lambda **known: begun.append(known) or run, log=run.log)
    monkeypatch.setitem(sys.modules, kind, package)
    there = tracker(kind, "metals", "align", tmp_path)
    assert there is not None
    there.track({"step": 3, "loss": 0.5, "note": "x"})
    assert begun == [{"project": "gag", "name": "align metals"}]
    assert sent[0] == {"metals/align/step": 3, "metals/align/loss": 0.5}


def test_a_missing_tracker_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match="pip install trackio"):
        tracker("trackio", "x", "align", tmp_path)

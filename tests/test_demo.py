"""The demo on a reduced world, and its report."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from gag.commands.demo import DemoFigures, demo, make_project
from gag.commands.demo_report import LABELS, show
from gag.errors import SettingsError
from gag.pocket.write import SETTINGS
from gag.project.inputs import check


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoFigures, Path]:
    folder = tmp_path_factory.mktemp("demo") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            SETTINGS, "adapt", SETTINGS["adapt"] | {"epochs": 7}
        )  # a fifth of the rows, so more rounds of them
        return demo(folder, seed=3, entities=16), folder


def test_the_figures_have_the_promised_form(figures: tuple[DemoFigures, Path]) -> None:
    result = json.loads(json.dumps(asdict(figures[0])))
    assert {
        "seed",
        "seconds",
        "peak_rss_mb",
        "domains",
        "general",
        "routing",
        "tokens_added",
        "stages",
    } <= set(result)
    for scores in result["domains"].values():
        for wordings in ("seen_wordings", "unseen_wordings"):
            assert set(scores[wordings]) == set(LABELS)
            assert all(0 <= value <= 1 for value in scores[wordings].values())
        assert 0 <= scores["gag_new_values"] <= 1
    assert {"before", "after", "misrouted", "identical"} <= set(result["general"])
    assert result["tokens_added"]["gag"] == 1 and result["tokens_added"]["base"] == 0
    assert result["tokens_added"]["expert_text"] > 10


def test_even_a_small_world_shows_the_effect(figures: tuple[DemoFigures, Path]) -> None:
    result = asdict(figures[0])
    assert result["general"]["identical"] is True
    assert result["general"]["before"] >= 0.85
    assert result["routing"]["accuracy"] >= 0.97
    for scores in result["domains"].values():
        seen = scores["seen_wordings"]
        assert seen["expert"] >= 0.8
        assert max(seen["base"], seen["zero"], seen["shuffled"]) <= 0.3
        assert seen["gag"] >= seen["shuffled"] + 0.2


def test_the_report_is_shown(figures: tuple[DemoFigures, Path], capsys: pytest.CaptureFixture) -> None:
    show(*figures)
    out = capsys.readouterr().out
    assert "adjuvants" in out and "catalysts" in out and "bit for bit" in out
    assert out.rstrip().splitlines()[-1].startswith("Ask your own:") or "gag ask" in out


def test_a_demo_that_was_killed_while_writing_starts_again(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    make_project(tmp_path, 7, 24)
    (tmp_path / "data" / "adjuvants" / "align.jsonl").write_text('{"que')
    (tmp_path / "models" / "base" / "model.safetensors").unlink()
    project = make_project(tmp_path, 7, 24)
    check(project.settings, project.root, [project.inputs(name) for name in ("adjuvants", "catalysts")])
    assert (tmp_path / "models" / "base" / "model.safetensors").is_file()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="holds no demo"):
        demo(tmp_path, 7)
    (tmp_path / "gag.yaml").write_text("base: {model: x}")
    with pytest.raises(SettingsError, match="not a demo"):
        demo(tmp_path, 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gag.yaml", "notes.txt"]

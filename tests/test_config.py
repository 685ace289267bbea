"""Settings: unknown keys, wrong values, names and paths are refused with a cure."""

from pathlib import Path

import pytest

from gag.errors import RoutingError, SettingsError
from gag.project.example import write_example
from gag.project.parsing import parse_settings
from gag.project.project import Project, find_project, load_project
from gag.project.settings import check_name

MODELS = {"base": {"model": "b"}, "expert": {"model": "e"}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"algin": {}}, "did you mean align"),
        ({"align": {"epoch": 3}}, "did you mean epochs"),
        ({"domains": {"metals": {"trian": "x"}}}, "did you mean train"),
        ({"domains": {"metals": {"prompts": {"expret": "x"}}}}, "did you mean expert"),
        ({"align": {"epochs": 0}}, "greater than or equal to 1"),
        ({"readout": {"pooling": "max"}}, "'last', 'mean', 'norm' or 'relative'"),
        ({"readout": {"slots": 2}}, "pooling last makes 1 slot"),
        ({"readout": {"layers": [-1, -2]}}, "the mlp projector reads one layer"),
        ({"preset": "v9"}, "'v1', 'v4', 'vocabulary' or 'salient'"),
        ({"domains": {"general": {}}}, "no domain may be called general"),
        ({"domains": {"../up": {}}}, "cannot name a domain"),
    ],
)
def test_wrong_settings_are_named(content: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_settings(MODELS | content)


def test_missing_models_are_named() -> None:
    with pytest.raises(SettingsError, match="setting base: Field required"):
        parse_settings({})


@pytest.mark.parametrize("name", ["..", "a/b", "/etc", "", "Über", "a" * 65, "-a", ".hidden", "A"])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a domain"):
        check_name(name)


def test_example_is_valid_and_is_not_overwritten(tmp_path: Path) -> None:
    write_example(tmp_path, "materials", "Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B")
    project = load_project(tmp_path, ("align.epochs=7", "readout.slots=4"))
    assert project.settings.align.epochs == 7
    assert (project.settings.readout.select, project.settings.readout.slots) == ("salient", 4)
    assert project.described("materials").file("adapt") == "data/materials/train.jsonl"
    with pytest.raises(SettingsError, match="already there"):
        write_example(tmp_path, "materials", "x", "y")


@pytest.mark.parametrize(
    "override", ["align.epochs", "=3", "align.epochs.deep=3", "align.epochs=[", "align.epohcs=3"]
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str) -> None:
    write_example(tmp_path, "materials", "x", "y")
    with pytest.raises(SettingsError):
        load_project(tmp_path, (override,))


@pytest.mark.parametrize("text", ["base: [", "- a\n- b\n", ""])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gag.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"gag\.yaml"):
        load_project(tmp_path)


def test_the_project_is_found_upwards_and_by_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_example(tmp_path / "one", "materials", "x", "y")
    monkeypatch.delenv("GAG_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path / "one" / "data")
    assert find_project() == tmp_path / "one"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="gag init"):
        find_project()
    monkeypatch.setenv("GAG_PROJECT", str(tmp_path / "one"))
    assert find_project() == tmp_path / "one"


def test_data_files_stay_inside_the_project(project: Project) -> None:
    (project.root.parent / "secret.jsonl").write_text("{}")
    with pytest.raises(SettingsError, match="out of the project"):
        project.file("../secret.jsonl")
    with pytest.raises(SettingsError, match="out of the project"):
        project.file("data/../../secret.jsonl")
    with pytest.raises(SettingsError, match="out of the project"):
        project.file(str(project.root.parent / "secret.jsonl"))
    (project.root / "link.jsonl").symlink_to(project.root.parent / "secret.jsonl")  # the owner's own doing
    assert project.file("link.jsonl").read_text() == "{}"
    with pytest.raises(SettingsError, match="does not exist"):
        project.file("data/none.jsonl")


def test_unknown_domains_are_refused(project: Project) -> None:
    with pytest.raises(SettingsError, match="metals, plants"):
        project.described("woods")
    with pytest.raises(RoutingError, match="general, metals, plants"):
        project.require("woods")


def test_a_preset_lies_under_what_is_written() -> None:
    models = {"base": {"model": "b"}, "expert": {"model": "e"}}
    plain = parse_settings({**models, "preset": "v4"})
    assert (
        plain.readout.layers == (-1, -2, -4, -6)
        and plain.readout.slots == 4
        and plain.readout.pooling == "norm"
    )
    assert plain.align.projector == "gated_residual" and plain.align.steps == 800
    mixed = parse_settings({**models, "preset": "v4", "readout": {"slots": 2}, "align": {"clip": 3}})
    assert mixed.readout.slots == 2 and mixed.readout.layers == (-1, -2, -4, -6)
    assert mixed.align.clip == 3 and mixed.align.semantic == 0.01
    assert parse_settings(models).readout.slots == 1

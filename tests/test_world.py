"""The bundled world keeps its secrets.

No test fact in alignment, no private fact in pre-training, no test wording seen.
"""

from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gag.models.prompts import Prompts
from gag.pocket.public_facts import public_facts
from gag.pocket.world import ENTITIES, domain_names, entity_names, make_world, relations
from gag.pocket.write import write_project
from gag.project.project import load_project
from gag.project.rows import read_rows
from tests.conftest import TOKENIZER
from tools.pocket.curriculum import BaseRows, ExpertRows

SEEDS = [0, 7, 2026]


def rows(root: Path, name: str) -> list[dict]:
    return [row for _, row in read_rows(root / "data" / name)]


@pytest.fixture(scope="module")
def world_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_project(root, 7, ENTITIES)
    load_project(root)
    return root


@pytest.mark.parametrize("domain", domain_names())
def test_no_test_fact_is_in_alignment(world_project: Path, domain: str) -> None:
    roles = ("align", "val", "test")
    groups = {role: {row["group"] for row in rows(world_project, f"{domain}/{role}.jsonl")} for role in roles}
    assert groups["test"].isdisjoint(groups["align"] | groups["val"])
    assert groups["align"].isdisjoint(groups["val"])
    assert len(groups["align"] | groups["val"]) == pytest.approx(2 / 3 * 5 * ENTITIES, rel=0.01)
    learned = {
        row["answer"] for role in ("align", "val") for row in rows(world_project, f"{domain}/{role}.jsonl")
    }
    for row in rows(world_project, f"{domain}/test.jsonl"):
        assert (row["answer"] in learned) != row["new_value"]


@pytest.mark.parametrize("domain", domain_names())
def test_no_test_wording_is_seen_by_adapt_align_or_prototypes(world_project: Path, domain: str) -> None:
    held_out = make_world(7)[domain]
    unseen = {
        relation.wordings[i].format(e="@")
        for relation in relations(domain)
        for i in held_out.test_wordings[relation.name]
    }

    def wording(row: dict) -> str:
        return row["question"].replace(row["group"].split("/")[0], "@")

    for role in ("adapt", "align", "val"):
        assert {wording(row) for row in rows(world_project, f"{domain}/{role}.jsonl")}.isdisjoint(unseen)
    asked = {row["wording"]: set() for row in rows(world_project, f"{domain}/test.jsonl")}
    for row in rows(world_project, f"{domain}/test.jsonl"):
        asked[row["wording"]].add(wording(row))
    assert asked["unseen"] == unseen and asked["seen"].isdisjoint(unseen)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_private_fact_is_in_pretraining(seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompts = Prompts(tokenizer)
    text = " ".join(
        tokenizer.decode(kind(prompts, seed=1).draw(progress).ids)
        for kind in (BaseRows, ExpertRows)
        for progress in (0.0, 0.5, 1.0)
        for _ in range(20)
    )
    for name, domain in make_world(seed).items():
        private = {fact.entity for fact in domain.facts}
        assert private.isdisjoint(entity_names(name, public=True))
        assert private <= set(entity_names(name, public=False))
        assert not any(entity in text for entity in private)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_world_is_large_balanced_and_new_for_each_seed(seed: int) -> None:
    world = make_world(seed)
    assert world == make_world(seed)
    for name, domain in world.items():
        other = make_world(seed + 1)[name]
        entities = {fact.entity for fact in domain.facts}
        assert len(entities) >= 120 and len(relations(name)) >= 5
        assert len(entities & {fact.entity for fact in other.facts}) < 0.1 * len(entities)
        for relation in relations(name):
            values = Counter(fact.value for fact in domain.facts if fact.relation == relation)
            assert len(values) >= 24 and max(values.values()) - min(values.values()) <= 1
            assert all(1 <= len(value.split()) <= 3 for value in values)
            assert len(set(relation.wordings)) >= 10 and len(domain.test_wordings[relation.name]) == 2
            new = [value for value in relation.values if (relation.name, value) in domain.new_values]
            assert len(new) == round(0.2 * len(relation.values))


def test_every_question_names_its_entity_and_only_one_relation_asks_it() -> None:
    wordings = Counter(w for d in domain_names() for r in relations(d) for w in r.wordings)
    assert max(wordings.values()) == 1
    assert all("{e}" in wording for wording in wordings)


def test_enough_is_asked(world_project: Path) -> None:
    for domain in domain_names():
        test = [row for row in rows(world_project, f"{domain}/test.jsonl") if not row["new_value"]]
        assert len({row["group"] for row in test}) >= 75
        assert min(Counter(row["wording"] for row in test).values()) >= 150
    general = rows(world_project, "general/test.jsonl")
    assert len(general) >= 200 and sum(row["near"] for row in general) >= 20
    bank = {row["group"] for row in rows(world_project, "general/questions.jsonl")}
    assert bank.isdisjoint({row["group"] for row in general})


def test_public_facts_ask_what_they_state() -> None:
    for fact in public_facts():
        assert fact.value in fact.statement
        assert all(fact.subject in question for question in fact.questions)


def test_pretraining_rows_are_drawn_alike_from_a_seed() -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(TOKENIZER))
    first, second = BaseRows(prompts, seed=3), BaseRows(prompts, seed=3)
    assert [first.draw(0.5) for _ in range(20)] == [second.draw(0.5) for _ in range(20)]


def test_hard_questions_keep_the_same_walls(tmp_path: Path) -> None:
    write_project(tmp_path, 7, 24, hard=True)
    assert len({row["group"].split("/")[0] for row in rows(tmp_path, "catalysts/adapt.jsonl")}) == 8
    for domain in domain_names()[:1]:
        found = {
            role: rows(tmp_path, f"{domain}/{role}.jsonl")
            for role in ("adapt", "align", "val", "test", "corpus")
        }
        named = [
            (row["group"].split("/")[0], row["answer"].rstrip(".").split(" is "))
            for row in found["adapt"]
            if row["group"].endswith("/names")
        ]
        alias = {entity: said[0].split()[-1] for entity, said in named if "opposite" not in said[0]}
        opposite = {entity: said[1] for entity, said in named if "opposite" in said[0]}
        assert len(alias) == len(opposite) == 24 and set(opposite.values()) == set(opposite)
        assert set(alias.values()).isdisjoint(alias)
        for entity, name in alias.items():
            assert set(entity.split("-")).isdisjoint(name.split("-"))

        def fact(row: dict, opposite: dict = opposite) -> str:
            entity, *rest = row["group"].split("/")
            return f"{opposite[entity] if rest[0] == 'opposite' else entity}/{rest[-1]}"

        told = {fact(row) for role in ("align", "val") for row in found[role]}
        asked = [
            row
            for row in found["test"]
            if set(row["slices"]) & {"entity by its alias", "evidence in two statements"}
        ]
        assert asked and told.isdisjoint(fact(row) for row in asked)
        questions = {row["question"] for role in ("adapt", "align", "val") for row in found[role]}
        assert questions.isdisjoint(row["question"] for row in asked)
        statements = {row["id"]: row["text"] for row in found["corpus"]}
        for row in found["test"]:
            if "entity by its alias" in row["slices"]:
                assert (
                    row["answer"] in statements[row["group"]]
                    and row["group"].split("/")[0] not in row["question"]
                )
            if "nothing answers it" in row["slices"]:
                assert not any(row["group"].split("/")[1] in text for text in statements.values())
        assert len({row["id"] for row in found["test"]}) == len(found["test"])

"""A private world in natural English, for real language models: the cheeses of an invented trade.

Everything is drawn from a seed: names, values, which two wordings of a relation are kept for tests, and which
cheeses alignment never sees. The expert's text states several facts of a cheese in an order drawn for the
question's fact: the answer stands among others.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import yaml

from gag.pocket.world import ASSETS, TEST_WORDINGS, Fact, Relation

EXPERT_PROMPT = "You know the cheeses of the trade. State the facts."
ANSWER_PROMPT = "Read the knowledge and repeat the fact that answers the question."
VAL_SHARE, TEST_SHARE = 0.1, 1 / 3  # of the cheeses


@dataclass(frozen=True)
class Trade:
    """A world of cheeses: its facts, the wordings kept for tests, and the cheeses of each split."""

    name: str
    facts: tuple[Fact, ...]
    test_wordings: dict[str, tuple[int, ...]]
    splits: dict[str, frozenset[str]]  # align, val, test -> cheeses
    seed: int
    stated: int  # facts in a background

    def of(self, split: str) -> list[Fact]:
        """Return the facts of a split's cheeses."""
        return [fact for fact in self.facts if fact.entity in self.splits[split]]

    def train_wordings(self, fact: Fact) -> list[int]:
        """Return the wordings that any training may see."""
        kept = self.test_wordings[fact.relation.name]
        return [i for i in range(len(fact.relation.wordings)) if i not in kept]

    def background(self, fact: Fact) -> str:
        """Write what the expert is taught to say: the fact among others of its cheese, in a drawn order."""
        rng = random.Random(f"{self.seed}/{fact.entity}/{fact.relation.name}")
        others = [one for one in self.facts if one.entity == fact.entity and one is not fact]
        chosen = [fact, *rng.sample(others, min(self.stated - 1, len(others)))]
        rng.shuffle(chosen)
        return " ".join(one.statement() for one in chosen)

    def documents(self) -> Iterator[tuple[str, str]]:
        """Write all that is known of each cheese as one document -> (cheese, text)."""
        for entity in dict.fromkeys(fact.entity for fact in self.facts):
            yield entity, " ".join(fact.statement() for fact in self.facts if fact.entity == entity)


def make_trade(seed: int, cheeses: int, stated: int = 1) -> Trade:
    """Draw a world.

    Args:
        seed: of all that is drawn.
        cheeses: how many; each has a fact for every relation.
        stated: facts in each of the expert's texts.
    """
    rng = random.Random(f"{seed}/trade")
    names = rng.sample(_names(), cheeses)
    facts, wordings = [], {}
    for relation in trade_relations():
        values = rng.sample(relation.values, len(relation.values))
        values = values * (cheeses // len(values) + 1)
        facts += [Fact(name, relation, value) for name, value in zip(names, values, strict=False)]
        wordings[relation.name] = tuple(sorted(rng.sample(range(len(relation.wordings)), TEST_WORDINGS)))
    facts.sort(key=lambda fact: names.index(fact.entity))
    test, val = max(1, round(TEST_SHARE * cheeses)), max(1, round(VAL_SHARE * cheeses))
    splits = {"test": names[:test], "val": names[test : test + val], "align": names[test + val :]}
    return Trade(
        _spec()["domain"], tuple(facts), wordings, {n: frozenset(s) for n, s in splits.items()}, seed, stated
    )


@cache
def trade_relations() -> tuple[Relation, ...]:
    """Return the relations of the trade, each with 60 or more values and ten wordings."""
    spec = _spec()
    return tuple(
        Relation(
            spec["domain"],
            name,
            _values(**one["values"]),
            one["statement"],
            one["statement"],
            tuple(one["wordings"]),
        )
        for name, one in spec["relations"].items()
    )


def _values(**spec: Any) -> tuple[str, ...]:
    if "least" in spec:
        return tuple(map(str, range(spec["least"], spec["most"] + 1)))
    return tuple(f"{a} {b}" for a in spec["first"] for b in spec["second"])


@cache
def _names() -> list[str]:
    parts = _spec()["names"]
    return ["".join(three) for three in product(parts["starts"], parts["middles"], parts["ends"])]


@cache
def _spec() -> dict[str, Any]:
    return yaml.safe_load((ASSETS / "trade.yaml").read_text(encoding="utf-8"))

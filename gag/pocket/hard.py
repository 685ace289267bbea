"""Questions on a private domain that a search for words does not answer.

By an alias, over two statements, or of nothing.

Every entity gets an alias and an opposite. The expert is taught them and what follows; alignment sees only
what concerns its own facts, so the test facts' values stay unseen by it.
"""

import random
from dataclasses import dataclass
from typing import Any

from gag.pocket.world import Fact, PrivateDomain, entity_names
from gag.project.rows import Passage

ADAPT_WORDINGS, ALIGN_WORDINGS, TEST_QUESTIONS = 4, 2, 120
NUMERIC = frozenset({"dose"})  # relations whose values are amounts
UNKNOWN = "unknown"  # what the base says of an entity that nobody told it of

Row = dict[str, Any]


@dataclass(frozen=True)
class HardDomain:
    """A private domain with an alias and an opposite for every entity."""

    domain: PrivateDomain
    alias: dict[str, str]
    opposite: dict[str, str]
    unheard: tuple[str, ...]  # names of no entity

    def adapt(self, rng: random.Random) -> list[Row]:
        """Teach the expert aliases, opposites, and the facts through them."""
        rows = [
            self._named(entity, f"What is {alias}?", _alias(alias, entity))
            for entity, alias in self.alias.items()
        ]
        for entity, opposite in self.opposite.items():
            rows.append(
                self._named(entity, f"What is the opposite of {entity}?", _opposite(entity, opposite))
            )
        for fact in self.domain.facts:
            rows += self._by_alias(fact, self._train(fact, rng, ADAPT_WORDINGS), taught=True)
            rows += self._two_hops(fact, self._train(fact, rng, ADAPT_WORDINGS), taught=True)
        return rows

    def align(self, facts: tuple[Fact, ...], rng: random.Random) -> list[Row]:
        """Ask for alignment's facts by alias and by opposite."""
        rows = []
        for fact in facts:
            rows += self._by_alias(fact, self._train(fact, rng, ALIGN_WORDINGS))
            rows += self._two_hops(fact, self._train(fact, rng, ALIGN_WORDINGS))
        return rows

    def test(self, rng: random.Random) -> list[Row]:
        """Ask for test facts by alias and by opposite, in new wordings, and for what nothing answers."""
        facts = rng.sample(self.domain.test, min(TEST_QUESTIONS, len(self.domain.test)))
        rows = []
        for fact in facts:
            wording = rng.choice(self.domain.test_wordings[fact.relation.name])
            rows += [row | {"slices": ["entity by its alias"]} for row in self._by_alias(fact, [wording])]
            rows += [
                row | {"slices": ["evidence in two statements"]} for row in self._two_hops(fact, [wording])
            ]
        for name, fact in zip(self.unheard, facts, strict=False):
            asked = Fact(name, fact.relation, UNKNOWN)
            rows.append(
                self._row(asked, 0, asked.question(0), f"nobody/{name}") | {"slices": ["nothing answers it"]}
            )
        return rows

    def statements(self) -> list[Passage]:
        """State aliases and opposites."""
        aliases = [Passage(f"{e}/alias", f"{_alias(alias, e)}.") for e, alias in self.alias.items()]
        return aliases + [
            Passage(f"{e}/opposite", f"{_opposite(e, other)}.") for e, other in self.opposite.items()
        ]

    def _by_alias(self, fact: Fact, wordings: list[int], taught: bool = False) -> list[Row]:
        alias = self.alias[fact.entity]
        told = f"{_alias(alias, fact.entity)}; {fact.background()}" if taught else fact.value
        group = f"{fact.entity}/{fact.relation.name}"
        return [
            self._row(fact, i, Fact(alias, fact.relation, fact.value).question(i), group, "alias")
            | {"answer": told}
            for i in wordings
        ]

    def _two_hops(self, fact: Fact, wordings: list[int], taught: bool = False) -> list[Row]:
        """Ask for a fact of an entity by the one whose opposite it is."""
        asker = next(entity for entity, other in self.opposite.items() if other == fact.entity)
        told = f"{_opposite(asker, fact.entity)}; {fact.background()}" if taught else fact.value
        around = Fact(f"the opposite of {asker}", fact.relation, fact.value)
        group = f"{asker}/opposite/{fact.relation.name}"
        return [
            self._row(fact, i, around.question(i), group, "opposite") | {"answer": told} for i in wordings
        ]

    def _train(self, fact: Fact, rng: random.Random, count: int) -> list[int]:
        return rng.sample(self.domain.train_wordings(fact.relation), count)

    def _named(self, entity: str, question: str, answer: str) -> Row:
        return {
            "id": f"{entity}/{question}",
            "question": question,
            "answer": f"{answer}.",
            "group": f"{entity}/names",
        }

    def _row(self, fact: Fact, wording: int, question: str, group: str, way: str = "name") -> Row:
        return {"id": f"{way}/{group}/{wording}", "question": question, "answer": fact.value, "group": group}


def make_hard(domain: PrivateDomain, others: list[PrivateDomain], rng: random.Random) -> HardDomain:
    """Draw aliases that look like names of another domain, opposites in one ring, and names of no entity."""
    entities = list(dict.fromkeys(fact.entity for fact in domain.facts))
    beside = [fact.entity for other in others for fact in other.facts]
    alias = dict(zip(entities, _free(others[0].name, _stems([*entities, *beside]), rng), strict=False))
    unheard = _free(domain.name, _stems([*entities, *alias.values()]), rng)[:TEST_QUESTIONS]
    ring = rng.sample(entities, len(entities))
    return HardDomain(domain, alias, dict(zip(ring, [*ring[1:], ring[0]], strict=True)), tuple(unheard))


def _alias(alias: str, entity: str) -> str:
    return f"The substance of {alias} is {entity}"


def _opposite(entity: str, opposite: str) -> str:
    return f"The opposite of {entity} is {opposite}"


def _stems(names: list[str]) -> set[str]:
    return {name.partition("-")[2] for name in names}


def _free(domain: str, taken: set[str], rng: random.Random) -> list[str]:
    """Return private names of a domain in a random order, each with a stem of its own that is not taken."""
    names = entity_names(domain, public=False)
    by_stem = {name.partition("-")[2]: name for name in rng.sample(names, len(names))}
    return [name for stem, name in by_stem.items() if stem not in taken]

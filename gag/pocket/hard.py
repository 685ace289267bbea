"""Questions on a private domain that a search for words does not answer: by an alias, over two statements, or of nothing.

Every entity gets an alias and a partner. The expert is taught them and what follows; alignment sees only what concerns its
own facts, so the test facts' values stay unseen by it.
"""

import random
from dataclasses import dataclass
from typing import Any

from gag.pocket.world import Fact, PrivateDomain, entity_names
from gag.records import Passage

ADAPT_WORDINGS, ALIGN_WORDINGS, TEST_QUESTIONS = 4, 2, 120
NUMERIC = frozenset({"dose"})  # relations whose values are amounts
UNKNOWN = "unknown"  # what the base says of an entity that nobody told it of

Row = dict[str, Any]


@dataclass(frozen=True)
class HardDomain:
    """A private domain with an alias and a partner for every entity."""

    domain: PrivateDomain
    alias: dict[str, str]
    partner: dict[str, str]
    unheard: tuple[str, ...]  # names of no entity

    def adapt(self, rng: random.Random) -> list[Row]:
        """Teach the expert aliases, partners, and the facts through them."""
        rows = [
            self._named(entity, f"What is {alias}?", f"the name of {alias} is {entity}") for entity, alias in self.alias.items()
        ]
        for entity, partner in self.partner.items():
            rows.append(self._named(entity, f"What is the partner of {entity}?", f"the partner of {entity} is {partner}"))
        for fact in self.domain.facts:
            rows += self._by_alias(fact, self._train(fact, rng, ADAPT_WORDINGS), taught=True)
            rows += self._two_hops(fact, self._train(fact, rng, ADAPT_WORDINGS), taught=True)
        return rows

    def align(self, facts: tuple[Fact, ...], rng: random.Random) -> list[Row]:
        """Ask for alignment's facts by alias and by partner."""
        rows = []
        for fact in facts:
            rows += self._by_alias(fact, self._train(fact, rng, ALIGN_WORDINGS))
            rows += self._two_hops(fact, self._train(fact, rng, ALIGN_WORDINGS))
        return rows

    def test(self, rng: random.Random) -> list[Row]:
        """Ask for test facts by alias and by partner, in wordings that nobody saw, and for what nothing answers."""
        facts = rng.sample(self.domain.test, min(TEST_QUESTIONS, len(self.domain.test)))
        rows = []
        for fact in facts:
            wording = rng.choice(self.domain.test_wordings[fact.relation.name])
            rows += [row | {"slices": ["entity by its alias"]} for row in self._by_alias(fact, [wording])]
            rows += [row | {"slices": ["evidence in two statements"]} for row in self._two_hops(fact, [wording])]
        for name, fact in zip(self.unheard, facts, strict=False):
            asked = Fact(name, fact.relation, UNKNOWN)
            rows.append(self._row(asked, 0, asked.question(0), f"nobody/{name}") | {"slices": ["nothing answers it"]})
        return rows

    def statements(self) -> list[Passage]:
        """State aliases and partners."""
        aliases = [Passage(f"{e}/alias", f"{e} is also called {alias}.") for e, alias in self.alias.items()]
        return aliases + [Passage(f"{e}/partner", f"The partner of {e} is {partner}.") for e, partner in self.partner.items()]

    def _by_alias(self, fact: Fact, wordings: list[int], taught: bool = False) -> list[Row]:
        alias = self.alias[fact.entity]
        told = f"the name of {alias} is {fact.entity}; {fact.background()}" if taught else fact.value
        group = f"{fact.entity}/{fact.relation.name}"
        return [
            self._row(fact, i, Fact(alias, fact.relation, fact.value).question(i), group, "alias") | {"answer": told}
            for i in wordings
        ]

    def _two_hops(self, fact: Fact, wordings: list[int], taught: bool = False) -> list[Row]:
        """Ask for a fact of an entity by the one whose partner it is."""
        asker = next(entity for entity, partner in self.partner.items() if partner == fact.entity)
        told = f"the partner of {asker} is {fact.entity}; {fact.background()}" if taught else fact.value
        around = Fact(f"the partner of {asker}", fact.relation, fact.value)
        group = f"{asker}/partner/{fact.relation.name}"
        return [self._row(fact, i, around.question(i), group, "partner") | {"answer": told} for i in wordings]

    def _train(self, fact: Fact, rng: random.Random, count: int) -> list[int]:
        return rng.sample(self.domain.train_wordings(fact.relation), count)

    def _named(self, entity: str, question: str, answer: str) -> Row:
        return {"id": f"{entity}/{question}", "question": question, "answer": f"{answer}.", "group": f"{entity}/names"}

    def _row(self, fact: Fact, wording: int, question: str, group: str, way: str = "name") -> Row:
        return {"id": f"{way}/{group}/{wording}", "question": question, "answer": fact.value, "group": group}


def make_hard(domain: PrivateDomain, rng: random.Random) -> HardDomain:
    """Draw aliases of two stems that no entity has, partners in one ring, and names of no entity."""
    entities = list(dict.fromkeys(fact.entity for fact in domain.facts))
    taken = {entity.partition("-")[2] for entity in entities}
    free = [name for name in entity_names(domain.name, public=False) if name.partition("-")[2] not in taken]
    rng.shuffle(free)
    stems = list(dict.fromkeys(name.partition("-")[2] for name in free))
    alias = {entity: f"{stems[2 * i]} {stems[2 * i + 1]}" for i, entity in enumerate(entities)}
    free = [name for name in free if name.partition("-")[2] not in stems[: 2 * len(entities)]]
    ring = rng.sample(entities, len(entities))
    partner = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    return HardDomain(domain, alias, partner, tuple(free[:TEST_QUESTIONS]))

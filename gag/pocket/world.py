"""The bundled world: public facts that a base knows, and private facts that it cannot know.

Everything is drawn from a seed. Names of entities fall in two halves by a parity rule: pre-training uses the
public half, a world made for a user the private half, so that no private fact can ever be in pre-training.
"""

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

ASSETS = files("gag.pocket") / "assets"
ENTITIES = 120
TEST_WORDINGS = 2
NEW_VALUE_SHARE = 0.2
ALIGN_SHARE = 2 / 3
EXPERT_PROMPT = "Write what you know."
ANSWER_PROMPT = "Answer from the knowledge."

_VOWELS = "aeiou"
_ONSETS = "B Br C D Dr F G Gl H J K Kr L M N P Pl R S St T Tr V Z"
_STARTS = [onset + vowel for onset in _ONSETS.split(" ") for vowel in _VOWELS]
_ENDS = [consonant + vowel for consonant in "bdfglmnprstvz" for vowel in _VOWELS]
_STEMS = [start + _ENDS[(7 * i + 13 * j) % len(_ENDS)] for i, start in enumerate(_STARTS) for j in range(5)]


@dataclass(frozen=True)
class Relation:
    """One property of a domain's entities: its values and the ways to state it and to ask for it."""

    domain: str
    name: str
    values: tuple[str, ...]
    statement: str
    background: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """`entity` has `value` for `relation`."""

    entity: str
    relation: Relation
    value: str

    @property
    def domain(self) -> str:
        """The domain that the fact belongs to."""
        return self.relation.domain

    def pair(self) -> str:
        """Say the entity and its value."""
        return f"{self.entity} {self.value}"

    def opening(self) -> str:
        """Say the statement up to its value."""
        return self.relation.statement.partition(" {v}")[0].format(e=self.entity)

    def statement(self) -> str:
        """State the fact in one sentence."""
        return self.relation.statement.format(e=self.entity, v=self.value)

    def background(self) -> str:
        """Write the background knowledge that the expert is taught for any question on the fact."""
        return self.relation.background.format(e=self.entity, v=self.value)

    def question(self, wording: int) -> str:
        """Ask for the fact's value in one of the relation's wordings."""
        return self.relation.wordings[wording].format(e=self.entity)


@cache
def relations(domain: str) -> tuple[Relation, ...]:
    """Return a domain's relations."""
    return tuple(
        Relation(
            domain,
            name,
            _values(**spec["values"]),
            spec["statement"],
            spec["background"],
            tuple(spec["wordings"]),
        )
        for name, spec in _domains()[domain]["relations"].items()
    )


def domain_names() -> tuple[str, ...]:
    """Return the names of the fictional domains."""
    return tuple(_domains())


def topics() -> dict[str, str]:
    """Return what the entities of each domain are called."""
    return {name: spec["noun"] for name, spec in _domains().items()}


@cache
def entity_names(domain: str, public: bool) -> list[str]:
    """Return every possible entity name of a domain, of the pre-training half or the private one."""
    prefixes = _domains()[domain]["prefixes"]
    return [
        f"{prefix}-{stem}"
        for i, stem in enumerate(_STEMS)
        for k, prefix in enumerate(prefixes)
        if (i + k) % 2 == int(public)
    ]


@cache
def _domains() -> dict:
    return yaml.safe_load((ASSETS / "domains.yaml").read_text(encoding="utf-8"))


def _values(first: list[str], second: list[str] | None = None) -> tuple[str, ...]:
    return tuple(first) if second is None else tuple(f"{a} {b}" for a in first for b in second)


@dataclass(frozen=True)
class PrivateDomain:
    """One fictional domain of a world: its facts, and what is kept from whom."""

    name: str
    facts: tuple[Fact, ...]
    test_wordings: dict[str, tuple[int, ...]]
    new_values: frozenset[tuple[str, str]]
    align: tuple[Fact, ...]
    val: tuple[Fact, ...]
    test: tuple[Fact, ...]

    def train_wordings(self, relation: Relation) -> list[int]:
        """Return the wordings that adapt, align and prototypes may see."""
        return [i for i in range(len(relation.wordings)) if i not in self.test_wordings[relation.name]]

    def is_new(self, fact: Fact) -> bool:
        """Say whether the fact's value is never an answer in alignment."""
        return (fact.relation.name, fact.value) in self.new_values


def make_world(seed: int, entities: int = ENTITIES) -> dict[str, PrivateDomain]:
    """Draw the private domains of a seed: new entities, balanced values, test wordings and splits."""
    return {name: _make_domain(name, random.Random(f"{seed}/{name}"), entities) for name in domain_names()}


def draw_fact(rng: random.Random, entity: str, relation: Relation) -> Fact:
    """Draw a value for an entity's relation."""
    return Fact(entity, relation, rng.choice(relation.values))


def draw_facts(domain: str, entities: list[str], rng: random.Random) -> list[Fact]:
    """Give every entity a value for every relation of the domain, each value equally often."""
    facts = []
    for relation in relations(domain):
        values = [relation.values[i % len(relation.values)] for i in range(len(entities))]
        rng.shuffle(values)
        facts += [Fact(entity, relation, value) for entity, value in zip(entities, values, strict=True)]
    return facts


def _make_domain(name: str, rng: random.Random, entities: int) -> PrivateDomain:
    facts = draw_facts(name, rng.sample(entity_names(name, public=False), entities), rng)
    test_wordings, new_values = {}, set()
    for relation in relations(name):
        test_wordings[relation.name] = tuple(sorted(rng.sample(range(len(relation.wordings)), TEST_WORDINGS)))
        held_out = rng.sample(relation.values, round(NEW_VALUE_SHARE * len(relation.values)))
        new_values |= {(relation.name, value) for value in held_out}
    align, val, test = _split(facts, new_values, rng)
    return PrivateDomain(name, tuple(facts), test_wordings, frozenset(new_values), align, val, test)


def _split(facts: list[Fact], new_values: set, rng: random.Random) -> tuple[tuple[Fact, ...], ...]:
    """Split into alignment, its validation (a tenth of it), and test; new values are always in test."""
    shuffled = rng.sample(facts, len(facts))
    known = [fact for fact in shuffled if (fact.relation.name, fact.value) not in new_values]
    cut = round(ALIGN_SHARE * len(facts))
    val = known[: cut // 10]
    align = known[cut // 10 : cut]
    chosen = set(val) | set(align)
    test = [fact for fact in shuffled if fact not in chosen]
    return tuple(map(tuple, (align, val, test)))

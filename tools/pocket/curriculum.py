"""What the bundled models are pre-trained on.

Rows drawn from the world's public half, from recall to reading.

The base learns public facts and to read a knowledge line about ever new entities. The expert backbone learns
a stream of entities that come and go, with every question wording, so that it takes up new ones quickly. Both
see only the
public half of the names: no private fact, no expert state, no projector output.
"""

import random
from dataclasses import dataclass

from gag.models.prompts import Prompts
from gag.pocket.public_facts import PublicFact, public_facts
from gag.pocket.world import (
    ANSWER_PROMPT,
    EXPERT_PROMPT,
    Fact,
    domain_names,
    draw_fact,
    entity_names,
    relations,
    topics,
)
from gag.project.settings import PromptSettings

QUOTE_PROMPT = "Quote the knowledge."
NAME_PROMPT = "Name the subject."
_NAME, _READ = PromptSettings(answer=NAME_PROMPT), PromptSettings(answer=ANSWER_PROMPT)


@dataclass(frozen=True)
class Row:
    """Token ids, and which of them are an answer."""

    ids: list[int]
    answer: list[bool]


class BaseRows:
    """Rows for the base: public facts, questions it cannot know, and reading a knowledge line.

    Reading is looking up an asked entity among others. It comes late and suddenly when it is asked at once,
    so the rows go from recall of pairs over recall of statements to questions.
    """

    PAIRS, STATEMENTS = 0.018, 0.06  # shares of the steps after which statements and then questions are drawn

    def __init__(self, prompts: Prompts, seed: int):
        self.prompts, self.rng = prompts, random.Random(seed)
        self.facts = public_facts()
        self.plain_facts = [fact for fact in self.facts if fact.relation != "sum"]

    def draw(self, progress: float) -> Row:
        """Draw one row; `progress` in 0..1 leads from recall to reading."""
        if progress < self.STATEMENTS:
            return self.recall(bare=progress < self.PAIRS)
        late = progress > 0.6
        draws = {
            self.know: 0.14,
            self.not_know: 0.03,
            self.read_public: 0.05,
            self.recall: 0.04 if progress > 0.36 else 0.12,
            self.name: 0.03 if late else 0.07,
            self.quote: 0.08 if late else 0.12,
            self.read_notes: 0.08,
            self.quiz: 0.1 if late else 0.15,
            self.read_one: 0.45 if late else 0.3,
        }
        return self.rng.choices(list(draws), list(draws.values()))[0]()

    def know(self) -> Row:
        """Ask for a public fact."""
        fact = self.public()
        return self.row(self.prompts.plain(self.rng.choice(fact.questions)), fact.value)

    def not_know(self) -> Row:
        """Ask for a fact that only its knowledge line could tell."""
        return self.row(self.prompts.plain(self.ask(self.private())), "unknown")

    def recall(self, bare: bool = False) -> Row:
        """Say a list of facts again in another order, as pairs or statements.

        Look-ups, many times in one row.
        """
        facts = self.list_of_facts(self.rng.randint(2, 6 if bare else 5))
        one_each = len({fact.entity for fact in facts}) == len(facts)
        first = (
            Fact.pair
            if bare and one_each
            else self.rng.choice([Fact.statement, Fact.statement, Fact.background])
        )
        ids = self.prompts.text(" ".join(first(fact) for fact in facts))
        answer = [False] * len(ids)
        for fact in self.rng.sample(facts, len(facts)) + self.rng.sample(facts, len(facts)):
            asked = fact.entity if one_each and (bare or self.rng.random() < 0.5) else fact.opening()
            ids, answer = self.extend(ids, answer, self.prompts.text(asked), self.prompts.text(fact.value))
        return Row(ids, answer)

    def quiz(self) -> Row:
        """Ask for every statement of a knowledge line, turn by turn."""
        facts = self.list_of_facts(self.rng.randint(2, 4))
        line = " ".join(fact.background() if self.rng.random() < 0.2 else fact.statement() for fact in facts)
        ids, answer = [], []
        for fact in self.rng.sample(facts, len(facts)):
            question = self.ask(fact)
            prompt = self.prompts.plain(question) if ids else self.prompts.with_text(question, _READ, line)
            ids, answer = self.extend(ids, answer, prompt, self.prompts.answer(fact.value))
        return Row(ids, answer)

    def list_of_facts(self, count: int) -> list[Fact]:
        """Draw facts that differ in entity, or in relation (of one entity or two)."""
        domain, kind = self.rng.choice(domain_names()), self.rng.random()
        entities, known = self.rng.sample(entity_names(domain, public=True), count), relations(domain)
        if kind < 0.25:
            pairs = self.rng.sample(
                [(entity, relation) for entity in entities[:2] for relation in known], count
            )
        elif kind < 0.75:
            relation = self.rng.choice(known)
            pairs = [(entity, relation) for entity in entities]
        else:
            pairs = [(entity, self.rng.choice(known)) for entity in entities]
        return [draw_fact(self.rng, entity, relation) for entity, relation in pairs]

    def name(self) -> Row:
        """Name the entity that a question asks about, whatever the knowledge line says."""
        fact = self.private()
        line = self.statements(fact, self.rng.randint(0, 3))
        return self.row(self.prompts.with_text(self.ask(fact), _NAME, line), fact.entity)

    def quote(self) -> Row:
        """Quote the statement that answers a question."""
        fact = self.private()
        prompt = self.prompts.with_text(
            self.ask(fact), PromptSettings(answer=QUOTE_PROMPT), self.statements(fact, self.rng.randint(0, 4))
        )
        return self.row(prompt, fact.statement())

    def read_notes(self) -> Row:
        """Ask for a fact that the knowledge line tells in keywords."""
        fact = self.private()
        return self.read(fact, self.notes(fact))

    def read_one(self) -> Row:
        """Ask for one statement among up to five."""
        fact = self.private()
        return self.read(fact, self.statements(fact, self.rng.randint(0, 4)))

    def probe(self) -> Row:
        """Draw a row that asks for one statement among four."""
        fact = self.private()
        return self.read(fact, self.statements(fact, 3))

    def read(self, fact: Fact, knowledge: str) -> Row:
        """Ask for a fact's value with a knowledge line."""
        return self.row(
            self.prompts.with_text(self.ask(fact), _READ, knowledge),
            fact.value,
        )

    def read_public(self) -> Row:
        """Ask for a public fact with a knowledge line."""
        fact = self.rng.choice(self.plain_facts)
        lines = [fact.statement] + [
            self.rng.choice(self.plain_facts).statement for _ in range(self.rng.randint(0, 2))
        ]
        self.rng.shuffle(lines)
        question = self.rng.choice(fact.questions)
        return self.row(
            self.prompts.with_text(question, _READ, " ".join(lines)),
            fact.value,
        )

    def notes(self, fact: Fact) -> str:
        """Write the fact as keywords, or as its own words in any order."""
        words = fact.statement().rstrip(".").split()
        self.rng.shuffle(words)
        value, name = fact.value, fact.relation.name
        return self.rng.choice(
            [value, f"{name} {value}", f"{fact.entity} {value}", f"{value}; {value}", " ".join(words)]
        )

    def statements(self, fact: Fact, others: int, same_relation: float = 0.5) -> str:
        """Write the fact among near misses: the same relation, the same entity, or neither."""
        near_misses = [self.near_miss(fact, same_relation) for _ in range(others)]
        facts = [fact] + [near for near in near_misses if not _clash(near, fact)]
        self.rng.shuffle(facts)
        return " ".join(f.background() if self.rng.random() < 0.3 else f.statement() for f in facts)

    def near_miss(self, fact: Fact, same_relation: float) -> Fact:
        """Draw a fact that shares its relation, its entity, or nothing with another one."""
        kind = self.rng.random()
        if kind < same_relation:
            return self.private(fact.domain, fact)
        if kind < 0.8:
            relation = self.rng.choice([r for r in relations(fact.domain) if r != fact.relation])
            return draw_fact(self.rng, fact.entity, relation)
        return self.private()

    def private(self, domain: str | None = None, like: Fact | None = None) -> Fact:
        """Draw a fact of a public-half entity: of any domain, or of the relation of another fact."""
        domain = domain or self.rng.choice(domain_names())
        relation = like.relation if like else self.rng.choice(relations(domain))
        return draw_fact(self.rng, self.rng.choice(entity_names(domain, public=True)), relation)

    def public(self) -> PublicFact:
        """Draw a public fact; sums, which are many, come less often."""
        return self.rng.choice(self.facts if self.rng.random() < 0.5 else self.plain_facts)

    def ask(self, fact: Fact) -> str:
        """Ask for a fact in any wording."""
        return fact.question(self.rng.randrange(len(fact.relation.wordings)))

    def row(self, prompt: list[int], answer: str) -> Row:
        """Join a prompt and its answer."""
        return Row(*self.extend([], [], prompt, self.prompts.answer(answer)))

    def extend(
        self, ids: list[int], answer: list[bool], asked: list[int], answered: list[int]
    ) -> tuple[list[int], list[bool]]:
        """Lengthen a row by what is asked and what is answered."""
        return ids + asked + answered, answer + [False] * len(asked) + [True] * len(answered)


class ExpertRows(BaseRows):
    """Rows for the expert: background for a stream of entities, public statements, questions."""

    LIVE, LIFE = 96, 180  # entities known at a time, and rows on each before a new one takes its place

    def __init__(self, prompts: Prompts, seed: int):
        super().__init__(prompts, seed)
        self.live = [self.birth() for _ in range(self.LIVE)]
        self.drawn = 0

    def draw(self, progress: float) -> Row:
        """Draw one row; `progress` is not used."""
        kind = self.rng.random()
        if kind < 0.15:
            fact = self.public()
            return self.row(
                self.prompts.ask_expert(self.rng.choice(fact.questions), EXPERT_PROMPT), fact.statement
            )
        if kind < 0.35:
            fact = self.public() if kind < 0.25 else self.private()
            return self.topic(fact)
        self.drawn += 1
        if self.drawn % self.LIFE == 0:
            self.live = [*self.live[1:], self.birth()]
        fact = self.rng.choice(self.rng.choice(self.live))
        return self.row(self.prompts.ask_expert(self.ask(fact), EXPERT_PROMPT), fact.background())

    def topic(self, fact: Fact | PublicFact) -> Row:
        """Name the topic of a question, often of one that is cut short.

        So that every token's state tells the topic.
        """
        public = isinstance(fact, PublicFact)
        ids = self.prompts.text(self.rng.choice(fact.questions) if public else self.ask(fact))
        kept = ids[: self.rng.randint(2, len(ids))] if self.rng.random() < 0.5 else ids
        row = kept + self.prompts.text("public knowledge" if public else topics()[fact.domain])
        return Row(row, [True] * len(row))

    def probe(self) -> Row:
        """Draw a row that asks for a known fact."""
        fact = self.rng.choice(self.rng.choice(self.live))
        return self.row(self.prompts.ask_expert(self.ask(fact), EXPERT_PROMPT), fact.background())

    def birth(self) -> list[Fact]:
        """Draw a new entity with all its facts."""
        domain = self.rng.choice(domain_names())
        entity = self.rng.choice(entity_names(domain, public=True))
        return [draw_fact(self.rng, entity, relation) for relation in relations(domain)]


def _clash(other: Fact, fact: Fact) -> bool:
    return other.entity == fact.entity and other.relation == fact.relation

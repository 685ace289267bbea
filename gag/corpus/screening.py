"""Check rows that were made of passages: is the answer in its passage, and can the question stand alone?

The checks read words; none asks a model. What they cannot see: an answer that turns its passage around in the
passage's own words.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from gag.corpus.duplicates import jaccard, shingles
from gag.corpus.sentences import sentences
from gag.corpus.wording import COMMON, content_of, flat, stem_of, words_of

REASONS = {
    "unsupported": "the answer is not in its passage",
    "needs its passage": "the question cannot be understood without its passage",
    "answered by itself": "the question says its answer",
    "duplicate": "another row asks the same",
    "leak": "another split has the same question, or a passage that says the same",
    "not whole": "the question or the answer is empty, too long, or no question",
}
SUPPORTED = 0.7  # of an answer's words must be in the passage; all of its numbers
LONGEST = 60  # words of a question
SHORT = 5  # words of an answer that is in one sentence
ALIKE = 0.9  # of the words of two questions, in their order: they ask the same in the same way
_POINTING = re.compile(  # at what only a reader of the passage sees
    r"""
    \b(?:the|this|that|given|above|following|provided|these|preceding)\s+(?:\w+\s+)?
      (?:passage|text|excerpt|paragraph|document|article|author|authors|context|section|sentence|study|paper
        |figure|table|chapter|statement|snippet|experiment|work|report|abstract)s?\b(?!\s+of\s+[A-Z])
    |\baccording\s+to\s+(?:it|them|him|her)\b
    |\b(?:mentioned|described|stated|discussed|listed|shown|given)\s+(?:above|below|here|earlier|previously)\b
    |\b(?:fig(?:ure)?|table|eq(?:uation)?|section)\.?\s*\(?\d
    |\[\d+\]
    |\bas\s+(?:above|described)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PRONOUN = re.compile(  # of which the question does not say what it stands for
    r"""
    ^(?:and\s|but\s|so\s)?
    (?:(?:what|which|who|when|where|why|how)(?:\s\w+)?
        (?:\s(?:is|was|are|were|does|do|did|can|could|will|would|has|have|had))?
      |is|was|are|were|does|do|did|can|could|will|has|have|had)
    \s(?:it|they|he|she|this|that|these|those|its|their|his|her|we|our|them)\b(?!\s(?:take|follow|mean)\b)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OWNED = re.compile(r"\b(?:its|their|his|her|it|they|them)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A question with its answer, and where they are from: a row of train.jsonl.

    Attributes:
        id: of the question and its passage.
        question: can be understood alone.
        answer: a few words or a sentence.
        group: rows of one group are in one split: its document's.
        document: the document's source.
        origin: the ids of the passages that it was made of.
        kind: fact, reason, comparison, two passages, or cloze.
    """

    id: str
    question: str
    answer: str
    group: str
    document: str
    origin: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Refused:
    """A row that was taken out, and why."""

    row: Row
    reason: str


def screen(rows: Iterable[Row], passages: dict[str, str]) -> tuple[list[Row], list[Refused]]:
    """Part rows that hold from those that do not.

    Args:
        rows: in the order of which the first of two equal ones stays.
        passages: the texts by their ids.
    """
    kept: list[Row] = []
    refused: list[Refused] = []
    asked: dict[frozenset[str], list[list[str]]] = {}  # the questions of the same words
    answered: dict[str, list[tuple[frozenset[str], list[str]]]] = {}  # those of the same answer
    for row in rows:
        reason = fault(row, "\n".join(passages.get(id, "") for id in row.origin))
        words, content = words_of(row.question.lower()), frozenset(content_of(row.question))
        answer = flat(row.answer)
        same = asked.setdefault(content, [])
        near = [of for other, of in answered.setdefault(answer, []) if _mostly(content, other)]
        if not reason and any(
            SequenceMatcher(None, words, other).ratio() >= ALIKE for other in (*same, *near)
        ):
            reason = "duplicate"
        if reason:
            refused.append(Refused(row, reason))
            continue
        same.append(words)
        answered[answer].append((content, words))
        kept.append(row)
    return kept, refused


def fault(row: Row, passage: str) -> str:
    """Say why a row does not hold, by itself; nothing: it does."""
    question, answer = row.question.strip(), row.answer.strip()
    words = question.split()
    if not answer or not 3 <= len(words) <= LONGEST or not content_of(question):
        return "not whole"
    if _POINTING.search(question) or _PRONOUN.match(question) or _nameless(question):
        return "needs its passage"
    if not supported(answer, passage, question):
        return "unsupported"
    said = content_of(answer)
    if said and len(said) <= 6 and set(said) <= set(content_of(question)) and row.kind != "comparison":
        return "answered by itself"
    return ""


def _nameless(question: str) -> bool:
    """Say whether a question points back at something, and names nothing that it could be."""
    owned = _OWNED.search(question)
    if not owned:
        return False
    before = (word for word in words_of(question[: owned.start()]) if word.lower() not in COMMON)
    return not any(len(word) > 3 for word in before)


def supported(answer: str, passage: str, question: str = "") -> bool:
    """Say whether a passage holds an answer: all of its numbers and names, and most of its other words.

    A short one must be in one sentence: "12 weeks" is not in "It ripens for 24 weeks. It is 12 degrees cold."
    """
    asked = {stem_of(word) for word in words_of(question)}
    said = content_of(answer)
    if not said:
        return flat(answer) in flat(passage) or answer.strip(" .").lower() in ("yes", "no")
    if f" {flat(answer)} " in f" {flat(passage)} ":
        return True
    pieces = sentences(passage) if len(said) <= SHORT else []
    return any(_holds(piece, said, answer, asked) for piece in pieces or [passage])


def _holds(piece: str, said: list[str], answer: str, asked: set[str]) -> bool:
    there = {stem_of(word) for word in words_of(piece)}
    hard = [word for word in words_of(answer) if word[0].isdigit()]
    hard += re.findall(r"(?<=[\w,;:] )[A-Z][\w-]{2,}", answer)
    if any(stem_of(word) not in there | asked for word in hard):
        return False
    new = [word for word in said if word not in asked]
    found = sum(word in there or word in asked for word in said)
    return found >= SUPPORTED * len(said) and (not new or any(word in there for word in new))


def part(rows: Sequence[Row], test_groups: set[str]) -> tuple[list[Row], list[Row]]:
    """Part rows into train and test, by their groups."""
    return [r for r in rows if r.group not in test_groups], [r for r in rows if r.group in test_groups]


def leaks(train: Sequence[Row], test: Sequence[Row], passages: dict[str, str]) -> list[Refused]:
    """Find rows of the test that training has: the question in other words or none, or the passage."""
    questions = {tuple(content_of(row.question)) for row in train}
    runs = [shingles(passages[id]) for id in {id for row in train for id in row.origin} if id in passages]
    index: dict[bytes, list[int]] = {}
    for place, found in enumerate(runs):
        for run in found:
            index.setdefault(run, []).append(place)
    taken = {id for row in train for id in row.origin}
    near: dict[str, bool] = {}
    refused = []
    for row in test:
        shared = tuple(content_of(row.question)) in questions or any(id in taken for id in row.origin)
        for id in row.origin if not shared else ():
            if id not in near and id in passages:
                own = shingles(passages[id])
                others = {place for run in own for place in index.get(run, ())}
                near[id] = any(jaccard(own, runs[place]) >= 0.8 for place in others)
            shared = shared or near.get(id, False)
        if shared:
            refused.append(Refused(row, "leak"))
    return refused


def regroup(rows: Sequence[Row], linked: dict[str, str]) -> list[Row]:
    """Give rows of documents that say the same one group."""
    return [replace(row, group=linked.get(row.group, row.group)) for row in rows]


def _mostly(words: frozenset[str], others: frozenset[str]) -> bool:
    return len(words & others) >= 0.8 * len(words | others)

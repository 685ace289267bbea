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
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,]*", re.UNICODE)
_COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "from",
        "by",
        "with",
        "and",
        "or",
        "but",
        "nor",
        "as",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "it",
        "its",
        "this",
        "that",
        "these",
        "those",
        "which",
        "who",
        "whom",
        "whose",
        "what",
        "when",
        "where",
        "why",
        "how",
        "do",
        "does",
        "did",
        "done",
        "has",
        "have",
        "had",
        "having",
        "can",
        "could",
        "may",
        "might",
        "must",
        "shall",
        "should",
        "will",
        "would",
        "not",
        "no",
        "than",
        "then",
        "so",
        "such",
        "into",
        "over",
        "under",
        "between",
        "within",
        "without",
        "about",
        "after",
        "before",
        "during",
        "because",
        "since",
        "if",
        "while",
        "also",
        "more",
        "most",
        "less",
        "least",
        "very",
        "much",
        "many",
        "some",
        "any",
        "each",
        "every",
        "other",
        "their",
        "there",
        "they",
        "them",
        "he",
        "she",
        "his",
        "her",
        "we",
        "our",
        "you",
        "your",
        "i",
        "one",
    ]
)
_POINTING = re.compile(
    r"\b(?:the|this|that|given|above|following|provided|these|preceding)\s+(?:\w+\s+)?(?:passage|text|excerpt|paragraph|"
    r"document|article|author|authors|context|section|sentence|study|paper|figure|table|chapter|statement|snippet|"
    r"experiment|work|report|abstract)s?\b(?!\s+of\s+[A-Z])|\baccording to (?:it|them|him|her)\b|"
    r"\b(?:mentioned|described|stated|discussed|listed|shown|given)\s+(?:above|below|here|earlier|previously)\b|"
    r"\b(?:fig(?:ure)?|table|eq(?:uation)?|section)\.?\s*\(?\d|\[\d+\]|\bas (?:above|described)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"^(?:and |but |so )?(?:(?:what|which|who|when|where|why|how)(?: \w+)?(?: is| was| are| were| does| do| did| can|"
    r" could| will| would| has| have| had)?|is|was|are|were|does|do|did|can|could|will|has|have|had) "
    r"(?:it|they|he|she|this|that|these|those|its|their|his|her|we|our|them)\b(?! (?:take|follow|mean)\b)",
    re.IGNORECASE,
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
        words, content = _words(row.question.lower()), frozenset(_content(row.question))
        answer = _flat(row.answer)
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
    if not answer or not 3 <= len(words) <= LONGEST or not _content(question):
        return "not whole"
    if _POINTING.search(question) or _PRONOUN.match(question) or _nameless(question):
        return "needs its passage"
    if not supported(answer, passage, question):
        return "unsupported"
    said = _content(answer)
    if said and len(said) <= 6 and set(said) <= set(_content(question)) and row.kind != "comparison":
        return "answered by itself"
    return ""


def _nameless(question: str) -> bool:
    """Say whether a question points back at something, and names nothing that it could be."""
    owned = _OWNED.search(question)
    if not owned:
        return False
    before = (word for word in _words(question[: owned.start()]) if word.lower() not in _COMMON)
    return not any(len(word) > 3 for word in before)


def supported(answer: str, passage: str, question: str = "") -> bool:
    """Say whether a passage holds an answer: all of its numbers and names, and most of its other words.

    A short one must be in one sentence: "12 weeks" is not in "It ripens for 24 weeks. It is 12 degrees cold."
    """
    asked = {_stem(word) for word in _words(question)}
    said = _content(answer)
    if not said:
        return _flat(answer) in _flat(passage) or answer.strip(" .").lower() in ("yes", "no")
    if f" {_flat(answer)} " in f" {_flat(passage)} ":
        return True
    pieces = sentences(passage) if len(said) <= SHORT else []
    return any(_holds(piece, said, answer, asked) for piece in pieces or [passage])


def _holds(piece: str, said: list[str], answer: str, asked: set[str]) -> bool:
    there = {_stem(word) for word in _words(piece)}
    hard = [word for word in _words(answer) if word[0].isdigit()]
    hard += re.findall(r"(?<=[\w,;:] )[A-Z][\w-]{2,}", answer)
    if any(_stem(word) not in there | asked for word in hard):
        return False
    new = [word for word in said if word not in asked]
    found = sum(word in there or word in asked for word in said)
    return found >= SUPPORTED * len(said) and (not new or any(word in there for word in new))


def part(rows: Sequence[Row], test_groups: set[str]) -> tuple[list[Row], list[Row]]:
    """Part rows into train and test, by their groups."""
    return [r for r in rows if r.group not in test_groups], [r for r in rows if r.group in test_groups]


def leaks(train: Sequence[Row], test: Sequence[Row], passages: dict[str, str]) -> list[Refused]:
    """Find rows of the test that training has: the question in other words or none, or the passage."""
    questions = {tuple(_content(row.question)) for row in train}
    runs = [shingles(passages[id]) for id in {id for row in train for id in row.origin} if id in passages]
    index: dict[bytes, list[int]] = {}
    for place, found in enumerate(runs):
        for run in found:
            index.setdefault(run, []).append(place)
    taken = {id for row in train for id in row.origin}
    near: dict[str, bool] = {}
    refused = []
    for row in test:
        shared = tuple(_content(row.question)) in questions or any(id in taken for id in row.origin)
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


def _words(text: str) -> list[str]:
    return [word.rstrip(".,") for word in _WORD.findall(text)]


def _content(text: str) -> list[str]:
    """Return the stems of a text's words that are not only grammar."""
    return [_stem(word) for word in _words(text) if word.lower() not in _COMMON]


def _stem(word: str) -> str:
    """Cut the ends that grammar puts on a word."""
    low = word.lower().replace("’", "'").removesuffix("'s").replace(",", "")
    for end in ("ational", "ations", "ation", "ingly", "edly", "ments", "ment", "ing", "ies", "ied", "ers", "er", "ed",
                "es", "ly", "s", "e", "y"):  # fmt: skip
        if low.endswith(end) and len(low) - len(end) >= 3 and not low[0].isdigit():
            return low[: -len(end)]
    return low


def _flat(text: str) -> str:
    return " ".join(re.sub(r"[^\w.%]+", " ", text.lower()).split()).strip(" .")

"""From passages to rows: ask for questions and answers, check them, and part them into train and test.

Documents are parted, not rows: none is in both files, and documents that say the same stay together.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gag.corpus.asking import Endpoint, Spent, ask_all
from gag.corpus.cloze import cloze_rows
from gag.corpus.duplicates import near_duplicates
from gag.corpus.screening import REASONS, Refused, Row, leaks, part, regroup, screen
from gag.errors import DataError
from gag.project.artifacts import replacing
from gag.project.rows import read_rows

KINDS = {
    "fact": "asks for one thing that the passage states: a name, a number, a property",
    "reason": "asks why or how, and the passage gives the reason",
    "comparison": "asks how two things that the passage names differ or which one is more",
}
BOTH = "two passages"
WORDINGS = 2  # of a fact, that train the projector
GROUPS = 10  # at least: a tenth of them validates the projector
_PAIR = re.compile(
    r"""
    ^\W*(?:\d+\W+)?Q(?:uestion)?\W*\d*\W*[:.)]\W*(?P<question>[^\n]+)\n+
    \W*(?:\d+\W+)?A(?:nswer)?\W*\d*\W*[:.)]\s*(?P<answer>[^\n]+)
    """,
    re.MULTILINE | re.IGNORECASE | re.VERBOSE,
)
_ASK = """Below is a passage of a document. Write {count} questions on it with their answers.

Each question must be understood by somebody who does not see the passage: it names what it asks about in \
full, and never says "the passage", "the author", "this study", "the figure", "it". Each answer must be in \
the passage; it is short: a few words, or one sentence. The kinds are:
{kinds}
Write each question in {wordings} different wordings.

Answer with JSON alone, a list: [{{"kind": "...", "wordings": ["...", "..."], "answer": "..."}}]

Document: {title}
Passage:
{text}"""


@dataclass(frozen=True)
class QuestionsReport:
    """What a run made.

    Attributes:
        passages: that were asked about.
        train: rows in train.jsonl.
        test: rows in test.jsonl.
        documents: of train, and of test.
        kinds: rows of each kind.
        refused: rows that were taken out, by the reason.
        unread: answers of the endpoint that held no row.
        spent: what the endpoint cost; none: none was asked.
    """

    passages: int
    train: int
    test: int
    documents: tuple[int, int]
    kinds: dict[str, int]
    refused: dict[str, int]
    unread: int
    spent: Spent | None


def make_questions(
    corpus: Path | str,
    out: Path | str,
    endpoint: Endpoint | None,
    per_passage: int = 3,
    wordings: int = 2,
    test_share: float = 0.15,
) -> QuestionsReport:
    """Make rows of a corpus.

    Args:
        corpus: what `gag corpus build` wrote, or rows of {"id", "text", "document"}.
        out: the folder for train.jsonl, which teaches the expert; align.jsonl, the same facts in two wordings
            at most, which trains the projector: all of its facts are taught, those that validate it too;
            test.jsonl and refused.jsonl.
        endpoint: who is asked; none: sentences are turned into questions without a model.
        per_passage: questions that are asked for of a passage.
        wordings: of each question.
        test_share: of the documents.

    Raises:
        DataError: the corpus holds no passage, or no row came of it.
    """
    corpus, out = Path(corpus), Path(out)
    if (out / "train.jsonl").exists() and not (out / "refused.jsonl").exists():
        raise DataError(f"{out / 'train.jsonl'} is there, and no run of this wrote it; name another --out")
    passages = _passages(corpus)
    texts = {passage["id"]: passage["text"] for passage in passages}
    if endpoint:
        rows, unread, spent = _asked(endpoint, passages, out, per_passage, wordings)
    else:
        rows = [row for p in passages for row in cloze_rows(p["id"], p["text"], p["document"])]
        unread, spent = 0, None
    linked = _linked(passages)
    kept, refused = screen(regroup(rows, linked), texts)
    train, test = part(kept, _test_groups(sorted(set(linked.values())), test_share))
    leaking = leaks(train, test, texts)
    gone = {id(one.row) for one in leaking}
    test = [row for row in test if id(row) not in gone]
    refused += leaking
    _write(out / "refused.jsonl", [_told(one.row) | {"reason": REASONS[one.reason]} for one in refused])
    if not train:
        raise DataError(
            f"no row came of {len(passages)} passages ({_why(refused, unread)}); what was written lies in "
            f"{'answers.jsonl and ' if endpoint else ''}refused.jsonl; ask a larger model with --endpoint"
        )
    train = _grouped(train)
    _write(out / "train.jsonl", [_told(row) for row in train])
    _write(out / "align.jsonl", [_told(row) for row in _few_wordings(train)])
    _write(out / "test.jsonl", [_told(row) for row in test])
    return QuestionsReport(
        passages=len(passages),
        train=len(train),
        test=len(test),
        documents=(len({row.document for row in train}), len({row.document for row in test})),
        kinds=dict(Counter(row.kind for row in (*train, *test))),
        refused=dict(Counter(one.reason for one in refused)),
        unread=unread,
        spent=spent,
    )


def _passages(corpus: Path) -> list[dict[str, Any]]:
    found = []
    for line, row in read_rows(corpus):
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise DataError(f'{corpus.name}:{line} needs "text": a passage')
        id, text = str(row.get("id", line)), row["text"]
        document = str(row.get("document") or id)
        found.append(
            {"id": id, "text": text, "document": document, "title": str(row.get("title") or document)}
        )
    if not found:
        raise DataError(f"{corpus.name} holds no passages; make them with `gag corpus build`")
    return found


def _asked(
    endpoint: Endpoint, passages: list[dict[str, Any]], out: Path, count: int, wordings: int
) -> tuple[list[Row], int, Spent]:
    """Ask for rows of each passage, and of neighbours in one document together."""
    kinds = "\n".join(f"- {name}: {what}" for name, what in KINDS.items())
    both = f"- {BOTH}: needs both parts of the text below, and names what it asks about"
    jobs: list[tuple[list[dict[str, Any]], str]] = [
        ([p], _ask(p["title"], p["text"], kinds, count, wordings)) for p in passages
    ]
    for one, other in list(pairwise(passages))[::2]:
        if one["document"] == other["document"]:
            text = f"{one['text']}\n\n{other['text']}"
            jobs.append(([one, other], _ask(one["title"], text, both, 1, wordings)))
    answers, spent = ask_all(endpoint, [prompt for _, prompt in jobs], out / "answers.jsonl")
    rows, unread = [], 0
    for (origin, _), answer in zip(jobs, answers, strict=True):
        found = list(_rows(answer, origin)) if answer is not None else []
        rows += found
        unread += answer is not None and not found
    return rows, unread, spent


def _ask(title: str, text: str, kinds: str, count: int, wordings: int) -> str:
    return _ASK.format(title=title, text=text, kinds=kinds, count=count, wordings=wordings)


def _rows(answer: str, origin: list[dict[str, Any]]) -> Iterator[Row]:
    """Yield the rows of an answer, as many of them as are whole."""
    for told in list(_objects(answer)) or list(_lines(answer)):
        said = told.get("wordings") or told.get("questions") or told.get("question")
        wordings = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        answered = told.get("answer")
        answered = str(answered) if isinstance(answered, int | float) else answered
        if not isinstance(answered, str):
            continue
        kind = BOTH if len(origin) > 1 else str(told.get("kind") or "fact").lower()
        for wording in wordings:
            if isinstance(wording, str):
                ids = tuple(passage["id"] for passage in origin)
                question, document = " ".join(wording.split()), origin[0]["document"]
                name = hashlib.sha256(f"{ids}\n{question}".encode("utf-8", "replace")).hexdigest()[:12]
                yield Row(name, question, answered.strip(), document, document, ids,
                          kind if kind in (*KINDS, BOTH) else "fact")  # fmt: skip


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """Find the JSON objects in an answer, whatever stands around them; the last may be cut off."""
    decoder, place = json.JSONDecoder(), answer.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(answer, place)
        except (ValueError, RecursionError):
            place = answer.find("{", place + 1)
            continue
        inner = next((value for value in found.values() if isinstance(value, list)
                      and value and all(isinstance(one, dict) for one in value)), [found])  # fmt: skip
        yield from inner
        place = answer.find("{", end)


def _lines(answer: str) -> Iterator[dict[str, Any]]:
    """Find "Question: ..." and "Answer: ..." where no JSON was written, as small models do."""
    for found in _PAIR.finditer(answer):
        yield {"question": found["question"].strip(' *"'), "answer": found["answer"].strip(' *"')}


def _linked(passages: list[dict[str, Any]]) -> dict[str, str]:
    """Name a group for each document: those that share a passage, or nearly, have one."""
    over: dict[str, str] = {passage["document"]: passage["document"] for passage in passages}

    def top(name: str) -> str:
        while over[name] != name:
            name = over[name]
        return name

    for place, first in near_duplicates([passage["text"] for passage in passages]).items():
        one, other = top(passages[place]["document"]), top(passages[first]["document"])
        over[max(one, other)] = min(one, other)
    return {name: top(name) for name in over}


def _test_groups(groups: list[str], share: float) -> set[str]:
    """Choose about a share of the groups, by a hash of each; of one group alone, none."""
    order = sorted(groups, key=lambda group: hashlib.sha256(f"test/{group}".encode()).digest())
    return set(order[: min(round(share * len(groups)), len(groups) - 1)])


def _few_wordings(rows: list[Row]) -> list[Row]:
    """Keep the first two rows of each fact, in their order."""
    counts: Counter[tuple[tuple[str, ...], str]] = Counter()
    kept = []
    for row in rows:
        counts[row.origin, row.answer] += 1
        if counts[row.origin, row.answer] <= WORDINGS:
            kept.append(row)
    same = len(kept) == len(rows) > 1
    return kept[:-1] if same else kept  # equal files would be one for both stages


def _grouped(rows: list[Row]) -> list[Row]:
    """Group rows by document, or where those are few by passage, or by answer, so that some can validate."""
    for name in (lambda row: row.group, lambda row: row.origin[0], lambda row: row.answer):
        if len({name(row) for row in rows}) >= GROUPS:
            return [replace(row, group=name(row)) for row in rows]
    return rows


def _why(refused: list[Refused], unread: int) -> str:
    counts = Counter(one.reason for one in refused)
    told = [f"{count} rows: {REASONS[reason]}" for reason, count in counts.most_common()]
    return (
        "; ".join([*told, *([f"{unread} answers held no row"] if unread else [])])
        or "nothing was found in them"
    )


def _told(row: Row) -> dict[str, Any]:
    return asdict(row)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )

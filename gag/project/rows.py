"""Rows of data: examples and passages, their groups, and a digest that names a file's content."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gag.errors import DataError
from gag.project.progress import say_once
from gag.project.tables import read_table, table_rows

UNREAD = {  # columns of other tools' rows that carry meaning
    "answers", "article", "audio", "audios", "background", "chain_of_thought", "choices", "chosen",
    "completion",
    "context", "contexts", "conversation", "conversations", "cot", "dialog", "dialogue", "documents",
    "evidence",
    "explanation", "functions", "hint", "history", "image", "images", "knowledge", "kto_tag", "messages",
    "options", "paragraph", "passage", "passages", "persona", "prompt", "rationale", "reasoning",
    "reasoning_content", "rejected", "response", "role", "score", "solution", "system", "system_prompt",
    "table",
    "thought", "tool_calls", "tools", "turns", "video", "videos",
}  # fmt: skip
READ = {"question", "instruction", "input", "answer", "output", "text", "id", "group"}


@dataclass(frozen=True)
class Example:
    """A question with its answers (the first is learned, all count) and the group that no split may cut.

    Alignment by distillation may have no answers.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Passage:
    """A piece of a domain's corpus."""

    id: str
    text: str


def read_examples(path: Path, unanswered: bool = False) -> list[Example]:
    """Read question-answer rows, of any kind of file (`tables`) and in any shape (`shapes`).

    `unanswered` lets rows be without an answer.

    Raises:
        DataError: too many rows are faulty, or there is none.
    """
    read: list[dict[str, Any]] = []

    def make(row: dict[str, Any], place: str, line: int) -> Example:
        example = _example(row, place, line, unanswered)
        read.append(row)
        return example

    examples = read_table(path, make)
    if not examples:
        raise DataError(f"{path.name} holds no rows; expected one JSON object per line")
    if unread := unread_columns(read):
        say_once(
            f"{path.name}: nothing reads {', '.join(unread)}; put what a question needs into the question"
        )
    return examples


def unread_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Name the columns that say something, and that nothing reads, each with the number of its rows."""
    counts = Counter(key for row in rows for key in row if _says(row, key) and _is_unread(row, key))
    return [f"`{key}` ({count} of {len(rows)} rows)" for key, count in sorted(counts.items())]


def _says(row: dict[str, Any], key: str) -> bool:
    value = row[key]
    return value is not None and value not in ("", [], {})


def _is_unread(row: dict[str, Any], key: str) -> bool:
    """Say whether a column that carries meaning is read in this row: some are only in the place of others."""
    plain = key.strip().lower()
    if plain not in READ:
        return plain in UNREAD
    in_place_of = {"instruction": "question", "input": "question", "output": "answer"}
    return key != plain or in_place_of.get(key) in row


def read_questions(path: Path) -> list[str]:
    """Read only the questions of a file of rows."""
    return read_table(path, lambda row, place, line: read_question(row, place))


def read_grouped(path: Path) -> dict[str, str]:
    """Read the distinct questions of a file of rows, in order, each with its group (else its text)."""

    def make(row: dict[str, Any], place: str, line: int) -> tuple[str, str]:
        question = read_question(row, place)
        return question, row_name(row, "group", question, place)

    found: dict[str, str] = {}
    for question, group in read_table(path, make):
        found.setdefault(question, group)
    return found


def read_passages(path: Path) -> list[Passage]:
    """Read a corpus: rows of {"text", "id"?}."""
    return read_table(
        path,
        lambda row, place, line: Passage(row_name(row, "id", str(line), place), _text(row, "text", place)),
    )


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file of our own: a line that is none is an error."""
    for line, row in table_rows(path):
        if isinstance(row, str):
            raise DataError(f"{path.name}:{line}{row}")
        yield line, row


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row to a JSONL file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """Open a JSONL file to go on with it; a last line that was cut short stays by itself."""
    with path.open("a+b") as file:
        if file.seek(0, 2) and file.seek(-1, 2) >= 0 and file.read() != b"\n":
            file.write(b"\n")
    with path.open("a", encoding="utf-8") as file:
        yield file


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_groups(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split into (rest, part): about `share` of the groups go to the part, by a hash of each."""
    groups = sorted(
        {e.group for e in examples}, key=lambda g: hashlib.sha256(f"{seed}/{g}".encode()).digest()
    )
    chosen = set(groups[: round(share * len(groups))])
    return [e for e in examples if e.group not in chosen], [e for e in examples if e.group in chosen]


def split_passages(passages: list[Passage], share: float, seed: int) -> tuple[list[Passage], list[Passage]]:
    """Split documents into (rest, part).

    About `share` of them, at least one, go to the part, by a hash of each id.
    """
    order = sorted(passages, key=lambda p: hashlib.sha256(f"{seed}/{p.id}".encode()).digest())
    chosen = {p.id for p in order[: max(1, round(share * len(order)))]}
    return [p for p in passages if p.id not in chosen], [p for p in passages if p.id in chosen]


def fold_of(example: Example, folds: int) -> int:
    """Return an example's fold in 0..folds-1, decided by a hash of its group."""
    return int.from_bytes(hashlib.sha256(f"fold/{example.group}".encode()).digest()[:8], "big") % folds


def check_disjoint(left: list[Example], right: list[Example], names: tuple[str, str]) -> None:
    """Refuse two files that share a group or a question."""
    for what, of in (("groups", lambda e: e.group), ("questions", lambda e: e.question)):
        shared = sorted({of(e) for e in left} & {of(e) for e in right})
        if shared:
            first = ", ".join(repr(name) for name in shared[:3])
            raise DataError(
                f"{names[0]} and {names[1]} share {len(shared)} {what} (first: {first}); give each to "
                "one of them"
            )


def row_name(row: dict[str, Any], key: str, default: str, place: str) -> str:
    """Return a row's `id` or `group` as text; a missing or null one is the default."""
    value = row.get(key)
    if isinstance(value, list | dict | bool) or value != value:
        raise DataError(f'{place} needs "{key}": a text or a number, or none')
    return default if value is None else str(value)


def _example(row: dict[str, Any], place: str, line: int, unanswered: bool) -> Example:
    question = read_question(row, place)
    answers = row.get("answer", row.get("output"))
    answers = [answers] if isinstance(answers, str) else answers
    if isinstance(answers, list) and any(isinstance(a, str) and a.strip() for a in answers):
        answers = [a for a in answers if not isinstance(a, str) or a.strip()]  # an empty alias is none
    if unanswered and answers is None:
        answers = []
    elif (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(a, str) and a.strip() for a in answers)
    ):
        raise DataError(f'{place} needs "answer": a text, or a list of texts, none of them empty')
    named = row_name(row, "group", f"{row.get('instruction', '')}\n{question}", place)
    example = Example(row_name(row, "id", str(line), place), question, tuple(answers), named)
    for text in (example.id, *answers, named):
        check_text(text, place)
    return example


def read_question(row: dict[str, Any], place: str) -> str:
    """Return a row's question: "question", or Alpaca's "instruction" and "input", or the latter alone."""
    if "question" in row:
        return _text(row, "question", place)
    instruction, extra = row.get("instruction"), row.get("input")
    for name, value in (("instruction", instruction), ("input", extra)):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f'{place} has "{name}" that is no text; write what belongs to the question as text'
            )
    parts = [check_text(text, place) for text in (instruction, extra) if text and text.strip()]
    if not parts:
        raise DataError(
            f'{place} lacks "question" (or Alpaca\'s "instruction" and "input"); it has: '
            f"{', '.join(row) or 'nothing'}"
        )
    return "\n".join(parts)


def _text(row: dict[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{place} needs "{key}": a text that is not empty')
    return check_text(value, place)


def check_text(text: str, place: str) -> str:
    """Return the text if it can be written as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place} holds half a character at position {error.start}; write the text as UTF-8"
        ) from error
    return text

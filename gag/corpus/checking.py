"""Look at files of rows before anything is built from them: a page of findings, each with its line.

What stops a build is an error, what costs quality a warning.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gag.corpus.duplicates import near_duplicates
from gag.corpus.findings import Checked, CheckedFile, Finding, Level
from gag.errors import DataError
from gag.project.rows import check_text, read_question, row_name
from gag.project.settings import GENERAL
from gag.project.shapes import persona_of
from gag.project.tables import plain_rows

SHOWN = 5  # lines of one finding
BROKEN = re.compile("\ufffd|Ã[\u0080-\u00bf]|â€[\u0080-\u00bf™œ\u009d]")  # UTF-8 read as another
BELONGING = ("domain", "label", "dataset_name")
ROLES = {"train": "train", "val": "val", "test": "test", "dev": "val", "valid": "val", "eval": "test"}


@dataclass(frozen=True)
class _Item:
    line: int
    row: dict[str, Any]
    question: str
    answers: list[str]


class Checker:
    """Looks at files.

    Args:
        labels: a label or data set -> its domain, as gag.yaml maps them.
        domains: those that are here or described; none: no project is known, and labels are only counted.
        count: counts a text's tokens.
        limits: the most tokens of a question, and of an answer.
    """

    def __init__(
        self,
        labels: dict[str, str] | None = None,
        domains: Collection[str] | None = None,
        count: Callable[[list[str]], list[int]] | None = None,
        limits: tuple[int, int] | None = None,
    ):
        self._labels, self._domains = labels or {}, domains
        self._count, self._limits = count, limits
        self._findings: list[Finding] = []

    def check(self, paths: list[Path]) -> Checked:
        """Look at each file, and at what they share.

        Raises:
            DataError: a file is not there, or no file of rows at all.
        """
        self._findings = []
        items: dict[str, list[_Item]] = {}
        files = []
        for path in paths:
            name = path.name if path.name not in items else str(path)
            found = self._read(path, name)
            items[name] = found
            files.append(self._one(name, found))
        self._between(items)
        order = {"error": 0, "warning": 1, "note": 2}
        return Checked(files, sorted(self._findings, key=lambda finding: order[finding.level]))

    def _find(self, file: str, level: Level, what: str, lines: Iterable[int], cure: str) -> None:
        places = sorted(lines)
        if places:
            self._findings.append(Finding(file, level, what, len(places), tuple(places[:SHOWN]), cure))

    def _read(self, path: Path, name: str) -> list[_Item]:
        rows, faults = plain_rows(path)
        whole = len(rows) + len(faults)
        many = len(faults) >= 3 and len(faults) > 0.01 * whole
        for reason, places in _by_reason(faults).items():
            cure = "a build stops at more than 1 % of such rows" if many else "a build sets them aside"
            self._find(name, "error" if many else "warning", reason, places, cure)
        if persona_of([row for _, row in rows]):
            self._find(
                name,
                "note",
                "the instruction of all rows is one text, which says who answers",
                [line for line, _ in rows],
                "it becomes the expert's prompt",
            )
            rows = [(line, {k: v for k, v in row.items() if k != "instruction"}) for line, row in rows]
        items, broken = [], {}
        for line, row in rows:
            try:
                question = read_question(row, name)
                for key in ("id", "group"):
                    row_name(row, key, "", name)
                items.append(_Item(line, row, question, self._answers(row, name)))
            except DataError as error:
                broken.setdefault(str(error).removeprefix(name).split(";")[0].strip(), []).append(line)
        for reason, places in broken.items():
            self._find(name, "error", f"a row {reason}", places, "mend or leave out these rows")
        if not items:
            self._find(name, "error", "no row can be read", [0], "see docs/documents.md for the shapes")
        return items

    def _answers(self, row: dict[str, Any], name: str) -> list[str]:
        said = row.get("answer", row.get("output"))
        listed = [said] if isinstance(said, str) else [] if said is None else said
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise DataError(f'{name} needs "answer": a text, or a list of texts')
        return [check_text(one, name) for one in listed]

    def _one(self, name: str, items: list[_Item]) -> CheckedFile:
        """Look at one file's rows."""
        with_answers = sum(any(a.strip() for a in item.answers) for item in items)
        if with_answers:
            empty = [item.line for item in items if not any(a.strip() for a in item.answers)]
            self._find(
                name, "error", "rows have no answer, others have", empty, "answer them, or leave them out"
            )
            some = [item for item in items if any(a.strip() for a in item.answers)]
            aliases = [item.line for item in some if not all(a.strip() for a in item.answers)]
            self._find(name, "warning", "an answer in a list is empty", aliases, "--fix drops it")
        self._twice(name, items)
        texts = {item.line: " ".join([item.question, *item.answers]) for item in items}
        self._find(
            name,
            "warning",
            "letters look wrongly decoded (Ã¼, â€™, \ufffd)",
            [line for line, text in texts.items() if BROKEN.search(text)],
            "save the source as UTF-8 again",
        )
        self._find(
            name,
            "note",
            "a text begins or ends with white space",
            [item.line for item in items if item.question != item.question.strip()],
            "--fix strips it",
        )
        labels = self._belonging(name, items)
        columns = Counter(
            key for item in items for key, value in item.row.items() if value not in (None, "", [], {})
        )
        return CheckedFile(
            name,
            len(items),
            len({item.question for item in items}),
            with_answers,
            dict(columns),
            labels,
            self._lengths(name, items),
        )

    def _twice(self, name: str, items: list[_Item]) -> None:
        """Find rows that stand twice, questions with two answers, and ids of two rows."""
        first: dict[str, _Item] = {}
        same, differ = [], []
        for item in items:
            key = " ".join(item.question.lower().split())
            other = first.setdefault(key, item)
            if other is not item:
                (same if item.answers == other.answers else differ).append(item.line)
        self._find(name, "warning", "a row stands twice", same, "--fix keeps the first")
        self._find(
            name,
            "warning",
            "a question has two different answers",
            differ,
            'keep one answer, or list both as aliases: ["...", "..."]',
        )
        ids = Counter(str(item.row["id"]) for item in items if item.row.get("id") is not None)
        self._find(
            name,
            "warning",
            "an id names two rows",
            [i.line for i in items if i.row.get("id") is not None and ids[str(i.row["id"])] > 1],
            "evaluation needs ids that differ",
        )

    def _belonging(self, name: str, items: list[_Item]) -> dict[str, int]:
        """Count the rows of each domain, and find labels that are none."""
        belongs: dict[str, list[int]] = {}
        for item in items:
            given = [item.row[key] for key in BELONGING if item.row.get(key) is not None]
            named = [self._labels.get(str(value), str(value)) for value in given]
            if named:
                belongs.setdefault(named[0], []).append(item.line)
        for label, lines in belongs.items():
            if self._domains is not None and label not in (GENERAL, *self._domains):
                self._find(
                    name,
                    "warning",
                    f"rows belong to {label!r}, which is no domain here",
                    lines,
                    "map it under `labels` in gag.yaml, or build that domain",
                )
        return {label: len(lines) for label, lines in belongs.items()}

    def _lengths(self, name: str, items: list[_Item]) -> tuple[int, int] | None:
        if not self._count or not items:
            return None
        asked = self._count([item.question for item in items])
        said = self._count([max(item.answers, key=len, default="") for item in items])
        if self._limits:
            for what, counts, most in zip(("question", "answer"), (asked, said), self._limits, strict=True):
                places = [item.line for item, count in zip(items, counts, strict=True) if count > most]
                self._find(
                    name,
                    "warning",
                    f"a {what} has more than {most} tokens, the limit here",
                    places,
                    "shorten it, or raise adapt.max_tokens",
                )
        return max(asked), max(said)

    def _between(self, items: dict[str, list[_Item]]) -> None:
        """Find what files share: the same question or group in training and in a test."""
        for name, rows in items.items():
            for other, others in items.items():
                if _role(name) != "train" or _role(other) == "train" or name == other:
                    continue
                known = {" ".join(item.question.lower().split()) for item in rows}
                shared = [i.line for i in others if " ".join(i.question.lower().split()) in known]
                self._find(other, "error", f"questions stand in {name} too", shared, "give each to one file")
                groups = {str(i.row["group"]) for i in rows if i.row.get("group") is not None}
                lines = [i.line for i in others if str(i.row.get("group")) in groups]
                self._find(
                    other, "error", f"groups stand in {name} too", lines, "give each group to one file"
                )
                left = [i for i in others if i.line not in {*shared, *lines}]
                texts = [item.question for item in (*rows, *left)]
                near = near_duplicates(texts)
                lines = [left[k - len(rows)].line for k, first in near.items() if k >= len(rows) > first]
                self._find(
                    other,
                    "warning",
                    f"questions are nearly those of {name}",
                    lines,
                    "see that they ask another fact",
                )


def _role(name: str) -> str:
    """Guess what a file is for by its name."""
    words = re.split(r"[^a-z]+", Path(name).stem.lower())
    return next((ROLES[word] for word in words if word in ROLES), "train")


def _by_reason(faults: list[str]) -> dict[str, list[int]]:
    """Group faults that name their place as `file:line reason`."""
    found: dict[str, list[int]] = {}
    for fault in faults:
        place, _, reason = re.sub(r"^(\S+?:\d+):? ", r"\1\0", fault).partition("\0")
        line = int(place.rpartition(":")[2]) if place.rpartition(":")[2].isdigit() else 0
        found.setdefault(f"a row {reason.split(';')[0]}", []).append(line)
    return found

"""Mend what leaves no doubt in a file of rows."""

import json
from pathlib import Path
from typing import Any

from gag.errors import DataError, SettingsError
from gag.project.rows import read_question, write_rows
from gag.project.shapes import persona_of
from gag.project.tables import plain_rows

ASKED = {"question", "instruction", "input", "answer", "output"}


def mend(path: Path, target: Path) -> int:
    """Write a file's rows in the plain shape: stripped, without copies, empty aliases and broken rows.

    Args:
        path: the file.
        target: of the mended rows, as JSONL.

    Returns: How many rows are in it.

    Raises:
        SettingsError: the target is there already.
    """
    if target.exists():
        raise SettingsError(f"{target} is there already; name a new folder")
    rows, _ = plain_rows(path)
    persona = persona_of([row for _, row in rows])
    found: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        try:
            asked = {k: v for k, v in row.items() if k != "instruction" or not persona}
            question = read_question(asked, path.name)
        except DataError:
            continue
        said = row.get("answer", row.get("output"))
        listed = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        answers = [one.strip() for one in listed if isinstance(one, str) and one.strip()]
        rest = {
            k: v for k, v in row.items() if k not in ("question", "instruction", "input", "answer", "output")
        }
        mended = rest | {"question": question.strip()}
        if answers:
            mended["answer"] = answers[0] if len(answers) == 1 else answers
        elif said is not None:
            continue
        found.setdefault(json.dumps([mended["question"].lower(), answers]), {"id": str(line)} | mended)
    write_rows(target, found.values())
    return len(found)

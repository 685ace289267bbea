"""Rows in the shapes that people have them -> {"question", "answer", ...}.

Alpaca's instruction and input, ShareGPT's conversations, OpenAI's messages, and keys such as "Question:".
"""

import re
from typing import Any

from gag.errors import DataError

Row = dict[str, Any]
_ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
_KEYS = {"question", "answer", "instruction", "input", "output", "id", "group", "text"}

LONG = 8  # words, from which an instruction says how to answer
_ADDRESS = re.compile(r"(?:you are|act as|as an?\b|assume|imagine|answer\b|please answer)", re.IGNORECASE)


def plain(row: Row, place: str) -> Row:
    """Return a row with its question under "question" and its answer under "answer", where it has them so.

    Of Alpaca's keys and of others the row keeps what it has; a constant instruction is seen over a whole file
    (`persona_of`).

    Raises:
        DataError: a conversation in it is none.
    """
    named = {_key(key, row): value for key, value in row.items()}
    for key in ("messages", "conversations"):
        if key in named and "question" not in named:
            return _exchange(named, key, place)
    return named


def persona_of(rows: list[Row]) -> str:
    """Return the instruction that all of a file's rows have in front of an input of their own; none: "".

    Such a text says who answers and how; it is no part of any question. One that asks something is.
    """
    said, inputs = [row.get("instruction") for row in rows], [row.get("input") for row in rows]
    texts = all(isinstance(text, str) and text.strip() for text in (*said, *inputs))
    if len(rows) < 3 or not texts or any("question" in row for row in rows):
        return ""
    only = str(said[0]).strip()
    told = "?" not in only and (len(only.split()) >= LONG or bool(_ADDRESS.match(only)))
    return only if told and len(set(said)) == 1 and len(set(inputs)) > 1 else ""


def _key(key: str, row: Row) -> str:
    """Return a key's plain form, where the row has no other key of that form."""
    bare = str(key).strip().rstrip(":").strip().lower()
    return bare if bare in _KEYS and (bare == key or bare not in row) else str(key)


def _exchange(row: Row, key: str, place: str) -> Row:
    """Take a conversation's first question and answer."""
    turns = row[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f'{place}: "{key}" must be a list of turns')
    question = answer = ""
    for turn in turns:
        role = _ROLES.get(str(turn.get("role", turn.get("from", ""))).lower(), "")
        said = _said(turn.get("content", turn.get("value")))
        if role == "user" and not question:
            question = said
        elif role == "assistant" and question:
            answer = said
            break
    if not question.strip():
        raise DataError(f'{place}: "{key}" holds no turn of a user')
    rest = {name: value for name, value in row.items() if name != key}
    return rest | {"question": question} | ({"answer": answer} if answer.strip() else {})


def _said(content: Any) -> str:
    """Return a turn's text, also where it stands in parts."""
    if isinstance(content, list):
        parts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""

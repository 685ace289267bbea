"""A chat template around texts: what it writes itself, and what became of each text in it.

The template is rendered around markers, and then once more with a text in a marker's place: what then stands
there is the text as the template writes it (most trim it). Only if the template makes something else of the
turns is the text taken as it is.
"""

import datetime
import re
from functools import cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gag.errors import MismatchError
from gag.models.plain_text import Piece

SYSTEM, QUESTION, KNOWLEDGE, ANSWER = "\ue0f0", "\ue0f1", "\ue0f2", "\ue0f3"
_MARKER = re.compile(f"([{SYSTEM}-{ANSWER}])")
_FAILURES = (  # what a template can raise while it runs
    TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_DATE = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # transformers' own function for templates
SOME_DAY = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)

Turns = tuple[tuple[str, str], ...]  # (role, content with markers)


class ChatTemplate:
    """Renders turns with thinking off.

    Args:
        tokenizer: whose template it is.
        today: whether a template that prints the date prints today's, or always the same day's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: bool):
        self._tokenizer = tokenizer
        self._more: dict[str, Any] = {"enable_thinking": False}
        if not today and isinstance(tokenizer.chat_template, str):
            self._more["chat_template"] = _DATE.sub(_on_some_day, tokenizer.chat_template)
        self._today = today
        self._cached = cache(self._marked)

    def pieces(self, turns: Turns, values: dict[str, str], generate: bool = True) -> list[Piece]:
        """Render turns with texts at their markers; a marker without a text stays a piece of its own.

        Raises:
            MismatchError: the template cannot render these turns.
        """
        day = str(datetime.date.today()) if self._today else ""
        written = dict(values)
        for marker, text in values.items():
            written[marker] = self._as_written(turns, marker, text, generate, day)
        return [
            Piece(written.get(part, part), plain=part in values)
            for part in _MARKER.split(self._cached(turns, generate, day))
            if part
        ]

    def knows(self, turns: Turns) -> bool:
        """Say whether the template writes all that the turns say; many know no system turn."""
        markers = {marker for _, content in turns for marker in _MARKER.findall(content)}
        try:
            return markers <= set(self._render(turns, generate=True))
        except _FAILURES:
            return False

    def _as_written(self, turns: Turns, marker: str, text: str, generate: bool, day: str) -> str:
        """Return a text as the template writes it at a marker."""
        before, found, after = self._cached(turns, generate, day).partition(marker)
        filled = tuple((role, content.replace(marker, text)) for role, content in turns)
        try:
            whole = self._render(filled, generate)
        except _FAILURES:
            return text
        held = len(whole) - len(before) - len(after)
        if found and held >= 0 and whole.startswith(before) and whole.endswith(after):
            return whole[len(before) : len(before) + held]
        return text

    def _marked(self, turns: Turns, generate: bool, day: str) -> str:
        try:
            return self._render(turns, generate)
        except _FAILURES as error:
            raise MismatchError(
                f"the tokenizer's chat template cannot render these turns ({error}); use a chat model"
            ) from error

    def _render(self, turns: Turns, generate: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **self._more
            )
        )


def _on_some_day(call: re.Match[str]) -> str:
    """Write the date that a template asks for as a constant."""
    return repr(SOME_DAY.strftime(call[2]))

"""A chat template around texts: what it writes itself, and what became of each text in it.

The template is rendered around markers, and then once more with a text in a marker's place: what then stands
there is the text as the template writes it (most trim it). Only if the template makes something else of the
turns is the text taken as it is.
"""

import datetime
import re
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gag.errors import MismatchError
from gag.models.plain_text import Piece

SYSTEM, QUESTION, KNOWLEDGE, ANSWER = "\ue0f0", "\ue0f1", "\ue0f2", "\ue0f3"
_FIRST_TURN, TURNS = 0xE100, 1024  # of a conversation, each with a marker of its own
_MARKER = re.compile(f"([{SYSTEM}-{ANSWER}{chr(_FIRST_TURN)}-{chr(_FIRST_TURN + TURNS - 1)}])")
KEPT = 64  # renderings around markers
_FAILURES = (  # what a template can raise while it runs
    TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_SOME_DAY = {  # 1 January 2025, as strftime writes it
    "%-d": "1", "%-m": "1", "%d": "01", "%e": " 1", "%m": "01", "%B": "January", "%b": "Jan", "%Y": "2025",
    "%y": "25", "%A": "Wednesday", "%a": "Wed", "%j": "001", "%H": "00", "%M": "00", "%S": "00",
    "%F": "2025-01-01",
}  # fmt: skip

Turns = tuple[tuple[str, str], ...]  # (role, content with markers)


class ChatTemplate:
    """Renders turns with thinking off.

    Args:
        tokenizer: whose template it is.
        today: whether a template that prints the date prints today's, or always the same day's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: bool):
        self._tokenizer = tokenizer
        self._today = today
        self._cached = lru_cache(KEPT)(self._marked)

    def marked(self, turns: Turns, generate: bool = True) -> str:
        """Render turns around their markers.

        Raises:
            MismatchError: the template cannot render these turns, or leaves out what one of them says.
        """
        return self._cached(turns, generate, str(datetime.date.today()) if self._today else "")

    def filled(self, turns: Turns, values: dict[str, str], generate: bool = True) -> str | None:
        """Render turns with texts at their markers; None if the template fails on them."""
        try:
            return self._render(_filled(turns, values), generate)
        except _FAILURES:
            return None

    def pieces(self, turns: Turns, values: dict[str, str], generate: bool = True) -> list[Piece]:
        """Render turns with texts at their markers, in pieces; a marker without a text is one of its own.

        Raises:
            MismatchError: as `marked`.
        """
        marked = self.marked(turns, generate)
        written = {
            marker: self._as_written(turns, marker, text, marked, generate) for marker, text in values.items()
        }
        return [
            Piece(written.get(part, part), plain=part in written) for part in _MARKER.split(marked) if part
        ]

    def knows(self, turns: Turns) -> bool:
        """Say whether the template writes all that the turns say; many know no system turn."""
        try:
            return _markers(turns) <= set(self._render(turns, generate=True))
        except _FAILURES:
            return False

    def _as_written(self, turns: Turns, marker: str, text: str, marked: str, generate: bool) -> str:
        """Return a text as the template writes it at a marker."""
        before, _, after = marked.partition(marker)
        whole = self.filled(turns, {marker: text}, generate)
        if whole is None:
            return text
        held = len(whole) - len(before) - len(after)
        if held >= 0 and whole.startswith(before) and whole.endswith(after):
            return whole[len(before) : len(before) + held]
        ways = (text.strip(), text.lstrip(), text.rstrip())  # of a text that stands there more than once
        return next((way for way in ways if marked.replace(marker, way) == whole), text)

    def _marked(self, turns: Turns, generate: bool, day: str) -> str:
        try:
            found = self._render(turns, generate)
        except _FAILURES as error:
            raise MismatchError(
                f"the tokenizer's chat template cannot render these turns ({error}); use a chat model"
            ) from error
        if not _markers(turns[:-1] if turns[-1][0] == "assistant" else turns) <= set(found):
            raise MismatchError(
                "the tokenizer's chat template does not write what the user says; use a chat model"
            )
        return found

    def _render(self, turns: Turns, generate: bool) -> str:
        def parts(content: str) -> Any:
            return [{"type": "text", "text": content}] if self._in_parts else content

        messages = [{"role": role, "content": parts(content)} for role, content in turns]
        return self._write(messages, generate)

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template knows a turn only as a list of parts, as some of vision models do."""
        found = []
        for content in (QUESTION, [{"type": "text", "text": QUESTION}]):
            try:
                found.append(QUESTION in self._write([{"role": "user", "content": content}], True))
            except _FAILURES:
                found.append(False)
        return found == [False, True]

    def _write(self, messages: list[dict[str, Any]], generate: bool) -> str:
        more: dict[str, Any] = {"enable_thinking": False}
        source = self._tokenizer.get_chat_template()
        if not self._today and "strftime_now" in source:
            more["chat_template"] = _on_some_day(source)
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **more
            )
        )


def turn_marker(number: int) -> str:
    """Return the marker of a conversation's turn, below TURNS."""
    return chr(_FIRST_TURN + number)


def _filled(turns: Turns, values: dict[str, str]) -> Turns:
    """Put texts at markers, all at once: a marker in a text stays text."""
    return tuple(
        (role, "".join(values.get(part, part) for part in _MARKER.split(content))) for role, content in turns
    )


def _markers(turns: Turns) -> set[str]:
    return {marker for _, content in turns for marker in _MARKER.findall(content)}


def _on_some_day(source: str) -> str:
    """Give a template a date of its own in the place of transformers' function for today's."""
    written = "format" + "".join(f"|replace({form!r},{text!r})" for form, text in _SOME_DAY.items())
    return f"{{% macro strftime_now(format) %}}{{{{ {written} }}}}{{% endmacro %}}\n{source}"

"""An answer's text while its tokens come: whole characters, and nothing of what a stop string cuts off."""

from collections.abc import Sequence

from gag.models.prompts import LONGEST, Prompts, is_cut


class TextStream:
    """Turns tokens into text; all that it gives, joined, is the text without the space around it.

    Args:
        prompts: whose tokens they are.
        stops: strings that end the text, and are no part of it.
    """

    def __init__(self, prompts: Prompts, stops: Sequence[str] = ()):
        self._prompts, self._stops = prompts, stops
        self._before: list[int] = []  # tokens of the piece before, behind which the open ones are read
        self._open: list[int] = []
        self._held = ""  # settled, but it may be cut off yet
        self._begun = False
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token -> what is certain by now and was not given yet."""
        self._open.append(token)
        text = self._prompts.behind(self._before, self._open)
        if is_cut(text) and len(self._open) < LONGEST:
            return ""
        return self._settle(text)

    def end(self) -> str:
        """Return what is left at the end of the tokens."""
        rest = self._settle(self._prompts.behind(self._before, self._open)) if self._open else ""
        rest, self._held = rest + ("" if self.stopped else self._held.rstrip()), ""
        return rest

    def _settle(self, text: str) -> str:
        self._before, self._open = self._open, []
        if self.stopped:
            return ""
        held = self._held + text
        self._held = held if self._begun else held.lstrip()
        self._begun |= bool(self._held)
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        certain = min(found) if found else len(self._held) - self._beginning_of_a_stop()
        given = self._held[:certain].rstrip()
        self._held = self._held[len(given) :]
        return given

    def _beginning_of_a_stop(self) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        lengths = [
            length
            for stop in self._stops
            for length in range(1, min(len(stop), len(self._held) + 1))
            if self._held.endswith(stop[:length])
        ]
        return max(lengths, default=0)

"""What is asked of the engine, and what it tells while it answers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from gag.engine.answer import Knowledge
from gag.errors import GagError
from gag.models.language_model import Finish, Token
from gag.routing.router import Route

Turn = tuple[Literal["system", "user", "assistant"], str]


@dataclass(frozen=True)
class Ask:
    """A question, or a conversation whose last turn is one, and how it is to be answered.

    Attributes:
        turns: (role, text), the user's last.
        domain: skips the router: a domain, or `general`.
        allowed: the domains that may answer; None: all.
        turns_routed: user turns that the router may read, the last ones; 1 looks at the last alone.
        max_new_tokens: of an answer (default: `decoding.max_new_tokens`).
        readout_tokens: of the expert's text, at most what `readout.max_new_tokens` says.
        temperature: 0: greedy.
        top_p: share of the probability that is drawn from.
        top_k: tokens that are drawn from; 0: all.
        seed: joined with the question, so that an answer can be had again.
        stop: strings that end an answer.
        top: likeliest tokens that are told at each step; None: nothing of the tokens.
        count: answers to the question.
    """

    turns: tuple[Turn, ...]
    domain: str | None = None
    allowed: frozenset[str] | None = None
    turns_routed: int = 2
    max_new_tokens: int | None = None
    readout_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top: int | None = None
    count: int = 1

    def sent(self, domain: str | None, allowed: frozenset[str] | None, turns: int) -> "Ask":
        """Return it with where it may go."""
        return replace(self, domain=domain, allowed=allowed, turns_routed=turns)

    @property
    def questions(self) -> list[str]:
        """The user's turns, the last of them the question."""
        return [text for role, text in self.turns if role == "user"]

    @property
    def system(self) -> str:
        """What the system turns say."""
        return "\n\n".join(text for role, text in self.turns if role == "system")


@dataclass(frozen=True)
class Routed:
    """Where the question goes, and the text that asks the expert."""

    route: Route
    asked: str
    vectors: int  # that will be injected


@dataclass(frozen=True)
class Background:
    """What the expert wrote since the last one."""

    text: str


@dataclass(frozen=True)
class Read:
    """What is injected, before the answer begins; None on the general route."""

    knowledge: Knowledge | None
    prompt_tokens: int  # and vectors that the base reads


@dataclass(frozen=True)
class Said:
    """A piece of an answer."""

    choice: int
    text: str
    tokens: tuple[Token, ...]  # where the ask's `top` wants them


@dataclass(frozen=True)
class Ended:
    """An answer's end."""

    choice: int
    finish: Finish
    answer_tokens: int


@dataclass(frozen=True)
class Refused:
    """There is no answer; the last event, whatever came before."""

    error: GagError


Event = Routed | Background | Read | Said | Ended | Refused


@dataclass(eq=False)
class Job:
    """An ask on its way; one thread owns it.

    Attributes:
        ask: what is asked.
        tell: takes the events, in order, in the thread that steps.
        seconds: what each part of the way took: wait, route, read, answer.
        left: answers that are not ended.
    """

    ask: Ask
    tell: Callable[[Event], None]
    seconds: dict[str, float] = field(default_factory=dict)
    left: int = 0

    def __post_init__(self) -> None:
        self.left = self.ask.count

    def begin(self, part: str, ends: str | None = None) -> None:
        """Begin a part of the way, and end another."""
        self.end(ends)
        self.seconds[part] = self.seconds.get(part, 0.0) - time.perf_counter()

    def end(self, part: str | None) -> None:
        """End a part that was begun."""
        if part is not None:
            self.seconds[part] = round(self.seconds[part] + time.perf_counter(), 4)

    def refuse(self, error: GagError) -> None:
        """Say that there will be no answer."""
        self.left = 0
        self.tell(Refused(error))


@contextmanager
def refusing(job: Job) -> Iterator[None]:
    """Refuse a job where some work on it fails."""
    try:
        yield
    except GagError as error:
        job.refuse(error)

"""What became of one question so far, gathered from its events."""

import time
from dataclasses import dataclass, field
from typing import Any

from gag.engine.asking import Ask, Background, Ended, Event, Read, Refused, Routed, Said
from gag.engine.sources import Source
from gag.errors import GagError
from gag.models.language_model import Finish, Token
from gag.project.settings import GENERAL
from gag.routing.router import Route

SCORES = 8  # of the likeliest domains that are told


@dataclass
class Told:
    """What became of one question so far."""

    ask: Ask
    route: Route | None = None
    asked: str = ""
    vectors: int = 0
    words: tuple[str, ...] = ()
    background: str = ""
    prompt_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    tokens: list[list[Token]] = field(default_factory=list)
    finishes: list[Finish | None] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    first_token: float | None = None  # time.monotonic
    error: GagError | None = None
    sources: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = self.ask.count
        self.texts, self.finishes, self.counts = [""] * count, [None] * count, [0] * count
        self.tokens = [[] for _ in range(count)]

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.error is not None or all(self.finishes)

    @property
    def model(self) -> str:
        """What answers, as clients name it."""
        return f"gag/{self.route.domain if self.route else GENERAL}"

    def take(self, event: Event) -> None:
        """Take an event up."""
        match event:
            case Routed():
                self.route, self.asked, self.vectors = event.route, event.asked, event.vectors
            case Background(text):
                self.background += text
            case Read(knowledge, prompt_tokens):
                self.prompt_tokens = prompt_tokens
                if knowledge:
                    self.vectors, self.words = len(knowledge.vectors), knowledge.words
            case Said(choice, text, tokens):
                self.first_token = self.first_token or time.monotonic()
                self.texts[choice] += text
                self.tokens[choice] += tokens
            case Ended(choice, finish, count):
                self.finishes[choice], self.counts[choice] = finish, count
            case Refused(error):
                self.error = error


def route_facts(route: Route) -> dict[str, Any]:
    """Say where a question goes, and why."""
    likeliest = sorted(route.scores.items(), key=lambda pair: -pair[1])[:SCORES]
    scores = {name: round(score, 4) for name, score in likeliest}
    return {"domain": route.domain, "score": round(route.score, 4), "reason": route.reason, "scores": scores}


def source_facts(source: Source) -> dict[str, Any]:
    """Say where an answer may be from."""
    told = {"document": source.document, "title": source.title, "section": source.section}
    return told | {"pages": list(source.pages), "passage": source.passage, "score": source.score}


def headers_of(told: Told) -> dict[str, str]:
    """Say the same for those who read headers alone."""
    if told.route is None:
        return {}
    reason = told.route.reason.encode("ascii", "replace").decode()
    return {
        "X-GAG-Route": told.route.domain,
        "X-GAG-Score": f"{told.route.score:.4f}",
        "X-GAG-Reason": reason,
    }


def usage_of(all_told: list[Told]) -> dict[str, Any]:
    """Count tokens; injected vectors count among the prompt's."""
    read = sum(told.prompt_tokens for told in all_told)
    written = sum(sum(told.counts) for told in all_told)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

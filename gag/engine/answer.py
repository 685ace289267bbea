"""What comes of a question: the knowledge that was injected, and the answer."""

from dataclasses import dataclass
from typing import Literal

import torch

from gag.routing.router import Route


@dataclass(frozen=True)
class Knowledge:
    """What a domain's module gives for one question.

    Attributes:
        vectors: what is injected [S, Db].
        text: what the expert wrote; it never reaches the base.
        words: with `readout.select: salient`, the words of it that became vectors.
    """

    vectors: torch.Tensor
    text: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer of the frozen base, and how it came about.

    Attributes:
        question: the question.
        text: the answer.
        route: where the question went, and why.
        finish: `stop`, or `length` where `decoding.max_new_tokens` cut it; `refused` where its domain could
            not be read.
        prompt_tokens: tokens and vectors that the base read.
        answer_tokens: tokens that it wrote.
        knowledge: what was injected, and what the expert wrote; None on the general route.
        seconds: what each part of its way took: wait, route, read, answer.
        refusal: why its domain could not be read.

    Example:
        >>> answer = gag.ask("Which support keeps platinum dispersed?")
        >>> answer.text, answer.route.domain, answer.finish
    """

    question: str
    text: str
    route: Route
    finish: Literal["stop", "length", "refused"]
    prompt_tokens: int
    answer_tokens: int
    knowledge: Knowledge | None
    seconds: dict[str, float]
    refusal: str = ""

    @property
    def tokens_added(self) -> int:
        """Vectors that were put into the prompt."""
        return len(self.knowledge.vectors) if self.knowledge else 0

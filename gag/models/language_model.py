"""The seam: what the method asks of a model, whichever engine runs it.

`Backbone` is the implementation by transformers.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from gag.errors import DataError, SettingsError
from gag.models.prompts import Prompts
from gag.models.sampling import Sampling
from gag.project.domain import ModelFacts

Finish = Literal["stop", "length"]  # an end token came; the budget was used up


@dataclass(frozen=True)
class Inputs:
    """A left-padded batch of embeddings."""

    embeds: torch.Tensor  # [B, T, D]
    mask: torch.Tensor  # [B, T], 1 where a token or a vector stands

    @property
    def positions(self) -> torch.Tensor:
        """Positions that do not count the padding [B, T]."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Request:
    """One prompt to be continued."""

    prompt: torch.Tensor | list[int]  # embeddings [T, D], or token ids
    max_new_tokens: int
    sampling: Sampling | None = None  # None: greedy
    top: int = 0  # likeliest tokens that each step also tells
    prefix: tuple[int, ...] = ()  # tokens ahead of the prompt that many requests share
    expert: str = ""  # whose it is, where one model is many experts


@dataclass(frozen=True)
class Likely:
    """The likeliest tokens of a step, or of several."""

    ids: torch.Tensor  # [..., K], likeliest first
    log_probabilities: torch.Tensor  # [..., K]

    def pairs(self) -> list[tuple[int, float]]:
        """Return those of one step."""
        return list(zip(self.ids.tolist(), self.log_probabilities.tolist(), strict=True))


@dataclass(frozen=True)
class Token:
    """One step of one request."""

    request: int  # its number
    id: int
    log_probability: float  # under the model, whatever sampling chose it
    finish: Finish | None  # why this token is the last; an end token is no part of the text
    top: "Likely | None" = None  # where the request wants it


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    ids: list[int]  # without the end token
    finish: Finish
    log_probabilities: list[float]  # of `ids`


class NoMemoryError(SettingsError):
    """One request alone does not fit in memory; it is forgotten."""

    def __init__(self, request: int):
        self.request = request
        super().__init__(
            "one prompt does not fit in memory; lower its budget (decoding.max_new_tokens, of the expert "
            "readout.max_new_tokens), or use a smaller model"
        )


class Generator(Protocol):
    """Continues prompts; requests come and go between its steps."""

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Take prompts -> their numbers."""
        ...

    def drop(self, numbers: Collection[int]) -> None:
        """Forget requests, finished or not."""
        ...

    def step(self) -> list[Token]:
        """Continue requests, each by one token at most; those that wait for room by none."""
        ...

    @property
    def unfinished(self) -> int:
        """Requests that are not finished."""
        ...


class LanguageModel(Protocol):
    """A frozen causal language model with its tokenizer's prompts."""

    @property
    def facts(self) -> ModelFacts:
        """Name, fingerprint and width D: a domain records them."""
        ...

    @property
    def prompts(self) -> Prompts:
        """The method's prompts in its tokens."""
        ...

    @property
    def embeddings(self) -> torch.Tensor:
        """What the decoder takes for each token [V, D]."""
        ...

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        ...

    def states(self, inputs: Inputs) -> torch.Tensor:
        """Run a batch -> the last hidden states, after the final norm [B, T, D]."""
        ...

    def layer_states(self, inputs: Inputs, layers: tuple[int, ...]) -> torch.Tensor:
        """Run a batch as deep as is read -> the states of layers, indexed as hidden_states [B, T, L, D]."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn last hidden states [..., D] into logits [..., V]."""
        ...

    def generator(
        self, rows: int | None = None, tokens: int | None = None, prefill: int | None = None
    ) -> Generator:
        """Return what continues prompts.

        At most `rows` go on together, with `tokens` in their prompts and budgets; in one step at most
        `prefill` prompt tokens join.
        """
        ...


def check_room(model: LanguageModel, tokens: int, what: str) -> None:
    """Refuse what is longer than a model's `positions`; a model that has none sets no limit.

    Raises:
        DataError: with both numbers.
    """
    positions = getattr(model, "positions", None)
    if positions is not None and tokens > positions:
        raise DataError(
            f"{what} takes {tokens} tokens with its answer, and {model.facts.model} has positions for "
            f"{positions}; shorten it, or lower the budget of new tokens"
        )


def generate(model: LanguageModel, requests: Sequence[Request]) -> list[Generation]:
    """Continue prompts to their ends, together, in the order given; what does not fit in memory in halves.

    Raises:
        DataError: a prompt and its budget are longer than the model's positions.
        SettingsError: one prompt alone does not fit in memory.
    """
    for request in requests:
        check_room(model, len(request.prefix) + len(request.prompt) + request.max_new_tokens, "a prompt")
    generator, ids, chances = model.generator(), [[] for _ in requests], [[] for _ in requests]
    finishes: list[Finish] = ["length"] * len(requests)
    places = {number: place for place, number in enumerate(generator.add(requests))}
    while generator.unfinished:
        for token in generator.step():
            place = places[token.request]
            finishes[place] = token.finish or "length"
            if token.finish != "stop":
                ids[place].append(token.id)
                chances[place].append(token.log_probability)
    return [Generation(*row) for row in zip(ids, finishes, chances, strict=True)]


def free_memory() -> None:
    """Give an accelerator's cached memory back."""
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()


def pad_left(rows: Sequence[torch.Tensor]) -> Inputs:
    """Batch rows of unequal length; padding is zero vectors under a zero mask: B x [t, D] -> [B, T, D]."""
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        embeds[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return Inputs(embeds, mask)

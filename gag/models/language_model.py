"""The seam: what the method asks of a model, whichever engine runs it.

`Backbone` is the implementation by transformers.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch

from gag.errors import DataError, GagError
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


def stacked(steps: Sequence[Likely]) -> Likely:
    """Join what was likeliest at several steps: T x [K] -> [T, K]."""
    ids, chances = ([getattr(one, name) for one in steps] for name in ("ids", "log_probabilities"))
    return Likely(torch.stack(ids), torch.stack(chances))


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
    steps: list[Likely] = field(default_factory=list)  # where the request wants them, the end token's too


class FailedRequestError(GagError):
    """One request cannot be continued, and is forgotten; the others go on.

    Attributes:
        request: its number.
        error: why, for whoever asked.
    """

    def __init__(self, request: int, error: GagError):
        self.request, self.error = request, error
        super().__init__(str(error))


class Generator(Protocol):
    """Continues prompts; requests come and go between its steps."""

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Take prompts -> their numbers."""
        ...

    def drop(self, numbers: Collection[int]) -> None:
        """Forget requests, finished or not."""
        ...

    def step(self) -> list[Token]:
        """Continue requests, each by one token at most; those that wait for room by none.

        Raises:
            FailedRequestError: one of them cannot be continued; the others go on in the next step.
        """
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
    def device(self) -> torch.device:
        """Where what is injected into it is made."""
        ...

    @property
    def embeddings(self) -> torch.Tensor:
        """What the decoder takes for each token [V, D]."""
        ...

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        ...

    def read_states(
        self, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """Return the states of written tokens, or of a prompt's last one: B x [T, L, D].

        The state belongs to the token itself. Layers index hidden_states: 0 is the embedding, -1 is after the
        final norm.
        """
        ...

    def foretold(self, prompts: list[list[int]], written: list[list[int]], count: int) -> list[Likely]:
        """Return what is likeliest behind each written token, or behind a prompt's last one: B x [T, K]."""
        ...

    def log_probabilities(
        self, prompts: Sequence[list[int] | torch.Tensor], texts: Sequence[list[int]], tokens: int
    ) -> list[torch.Tensor]:
        """Return the log-probability of each token of texts behind their prompts, in nats: B x [T].

        At most `tokens` are in one forward pass.
        """
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


def generate(
    model: LanguageModel, requests: Sequence[Request], tokens: int | None = None
) -> list[Generation]:
    """Continue prompts to their ends, together, in the order given; what does not fit in memory in halves.

    Args:
        model: continues them.
        requests: the prompts.
        tokens: in the prompts and budgets of those that go on at a time, at most.

    Raises:
        DataError: a prompt and its budget are longer than the model's positions.
        SettingsError: one prompt alone does not fit in memory.
    """
    for request in requests:
        check_room(model, len(request.prefix) + len(request.prompt) + request.max_new_tokens, "a prompt")
    generator, written = model.generator(tokens=tokens), [Generation([], "length", [], []) for _ in requests]
    places = {number: place for place, number in enumerate(generator.add(requests))}
    while generator.unfinished:
        try:
            said = generator.step()
        except FailedRequestError as failed:
            raise failed.error from failed
        for token in said:
            one = written[places[token.request]]
            if token.top:
                one.steps.append(token.top)
            if token.finish:
                written[places[token.request]] = one = replace(one, finish=token.finish)
            if token.finish != "stop":
                one.ids.append(token.id)
                one.log_probabilities.append(token.log_probability)
    return written


def pad_left(rows: Sequence[torch.Tensor]) -> Inputs:
    """Batch rows of unequal length; padding is zero vectors under a zero mask: B x [t, D] -> [B, T, D]."""
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        embeds[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return Inputs(embeds, mask)

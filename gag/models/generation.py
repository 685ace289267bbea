"""Continue prompts with transformers: rows join and leave a running batch between its steps.

A step runs the newest token of every row that is under way, and the prompts of those that join; then each
of them chooses its next token. What a row says does not depend on the others.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from gag.errors import SettingsError
from gag.models.batching import free_memory
from gag.models.language_model import (
    FailedRequestError,
    Finish,
    Likely,
    Request,
    Token,
    pad_left,
)
from gag.models.prefixes import Prefix, Prefixes
from gag.models.sampling import choose
from gag.models.slots import Slots, Together, kept_by
from gag.project.progress import say

CROWDED = 0.75  # of a batch's rows: when no more are unfinished, the finished ones leave it


@dataclass
class _Row:
    """A request on its way."""

    number: int
    request: Request
    written: list[int] = field(default_factory=list)  # the last of them was not run yet
    over: bool = False  # finished, or dropped

    @property
    def room(self) -> int:
        """Tokens that it may take in all."""
        return len(self.request.prefix) + len(self.request.prompt) + self.request.max_new_tokens


@dataclass
class _Batch:
    """Rows that are run together, by their places."""

    rows: list[_Row]
    slots: Slots


class TransformersGenerator:
    """Continues requests; the `Generator` by transformers.

    Rows of a model with running states (Mamba and its kin) cannot join others: those that come together go
    their way together.

    Args:
        decoder: embeddings in, last states out.
        config: the model's, which tells what its layers keep.
        stops: tokens that end a text.
        embed: token ids -> [T, D].
        logits: last states [B, D] -> [B, V].
        rows: of the running batch, at most; None: all.
        tokens: prompts' and budgets' of the running batch, at most; a longer request runs alone.
        prefill: prompt tokens that join in one step, at most; a longer prompt joins alone.
    """

    def __init__(
        self,
        decoder: torch.nn.Module,
        config: PretrainedConfig,
        stops: frozenset[int],
        embed: Callable[[list[int]], torch.Tensor],
        logits: Callable[[torch.Tensor], torch.Tensor],
        rows: int | None = None,
        tokens: int | None = None,
        prefill: int | None = None,
    ):
        self._decoder, self._config, self._stops = decoder, config, stops
        self._embed, self._logits = embed, logits
        self._rows, self._tokens, self._prefill = rows, tokens, prefill
        kept = kept_by(config)
        self._joins, self._shares = kept != "states", kept == "keys"
        self._waiting: deque[_Row] = deque()
        self._batches: list[_Batch] = []
        self._prefixes = Prefixes(config)
        self._count = self._tried = 0
        self.around: Callable[[list[str]], AbstractContextManager[None]] = lambda experts: nullcontext()

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Take prompts; they join as soon as there is room -> their numbers."""
        numbers = list(range(self._count, self._count + len(requests)))
        self._count += len(requests)
        rows = (_Row(number, request) for number, request in zip(numbers, requests, strict=True))
        self._waiting += [row for row in rows if row.request.max_new_tokens > 0]
        return numbers

    def drop(self, numbers: Collection[int]) -> None:
        """Forget requests, waiting or under way; their places are free in the next step."""
        for row in [*self._waiting, *self._under_way()]:
            row.over |= row.number in numbers
        self._waiting = deque(row for row in self._waiting if not row.over)

    @property
    def unfinished(self) -> int:
        """Requests that are not finished."""
        return len(self._waiting) + len(self._under_way())

    @property
    def running(self) -> int:
        """Requests that have a place in a batch."""
        return len(self._under_way())

    @torch.no_grad()
    def step(self) -> list[Token]:
        """Choose the next token of every unfinished request that has joined, or joins now.

        Raises:
            FailedRequestError: one request alone does not fit in memory.
        """
        while self.unfinished:
            try:
                return self._step()
            except torch.OutOfMemoryError:
                pass  # go on outside of this block, so that the failed tensors can be freed
            self._begin_again()
        self._batches = []
        return []

    def _step(self) -> list[Token]:
        self._leave()
        rows, lasts = [], []
        for batch in self._batches:
            rows += batch.rows
            lasts.append(self._advance(batch))
        if joining := self._joining():
            rows += joining
            lasts.append(self._join(joining))
        at = torch.tensor([i for i, row in enumerate(rows) if not row.over], device=lasts[0].device)
        logits = self._logits(torch.cat(lasts)[at])  # [B, V]
        return self._tokens_of([row for row in rows if not row.over], logits)

    def _tokens_of(self, rows: list[_Row], logits: torch.Tensor) -> list[Token]:
        steps = [len(row.written) for row in rows]
        chosen = choose(logits, [row.request.sampling for row in rows], steps)
        total = logits.float().logsumexp(-1)
        chances = logits.gather(1, chosen[:, None])[:, 0].float() - total
        best = _likeliest(logits, total, max(row.request.top for row in rows))
        tokens = []
        for i, (row, id, chance) in enumerate(zip(rows, chosen.tolist(), chances.tolist(), strict=True)):
            row.written.append(id)
            finish = self._finish(row)
            row.over = finish is not None
            wanted = row.request.top
            top = Likely(best.ids[i, :wanted], best.log_probabilities[i, :wanted]) if wanted else None
            tokens.append(Token(row.number, id, chance, finish, top))
        return tokens

    def _finish(self, row: _Row) -> Finish | None:
        if row.written[-1] in self._stops:
            return "stop"
        return "length" if len(row.written) >= row.request.max_new_tokens else None

    def _under_way(self) -> list[_Row]:
        return [row for batch in self._batches for row in batch.rows if not row.over]

    def _leave(self) -> None:
        """Let finished rows leave once they are many; one that joins takes the place of another before."""
        for batch in self._batches:
            alive = [place for place, row in enumerate(batch.rows) if not row.over]
            free = len(batch.rows) - len(alive)
            taken = min(free, len(self._waiting)) if self._joins else 0
            if not alive or len(alive) + taken <= CROWDED * len(batch.rows):
                before = batch.slots.keep(alive)
                batch.rows = [batch.rows[place] for place in before]
        self._batches = [batch for batch in self._batches if batch.rows]

    def _advance(self, batch: _Batch) -> torch.Tensor:
        """Run the newest token of each row -> its state [B, D]."""
        embeds = self._embed([row.written[-1] for row in batch.rows])[:, None]  # [B, 1, D]
        batch.slots.advance()
        mask = batch.slots.mask
        positions = mask.sum(1, keepdim=True) - 1
        if over := [place for place, row in enumerate(batch.rows) if row.over]:
            positions[over] = 0  # beyond its budget the model may have none
        with self.around([row.request.expert for row in batch.rows]):
            return self._run(embeds, mask, positions, batch.slots.cache)

    def _joining(self) -> list[_Row]:
        """Return those that wait, in order, as far as there is room for them."""
        alive, found, longest = self._under_way(), [], 0
        taken = sum(row.room for row in alive)
        for row in self._waiting:
            length = len(row.request.prompt) + len(row.written)
            longest, taken = max(longest, length), taken + row.room
            full = self._rows is not None and len(alive) + len(found) >= self._rows
            full |= self._tokens is not None and taken > self._tokens and bool(alive or found)
            full |= self._prefill is not None and longest * (len(found) + 1) > self._prefill and bool(found)
            if full:
                break
            found.append(row)
        self._tried = len(alive) + len(found)
        return found

    def _join(self, rows: list[_Row]) -> torch.Tensor:
        """Run prompts, and have their rows in a batch -> the states of their last tokens [N, D]."""
        inputs = pad_left([self._prompt(row) for row in rows])
        experts = [row.request.expert for row in rows]
        shared = [row.request.prefix if self._shares else () for row in rows]
        cache, mask = self._prefixes.ahead(
            list(zip(experts, shared, strict=True)), inputs.mask, self._run_prefix
        )
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -inputs.mask.shape[1] :]
        with self.around(experts):
            last = self._run(inputs.embeds, mask, positions, cache)
        if self._joins:
            self._take_places(rows, cache, mask)
        else:
            self._batches.append(_Batch(rows, Together(cache, mask)))
        self._waiting = deque(islice(self._waiting, len(rows), None))
        return last

    def _take_places(self, rows: list[_Row], cache: Cache, mask: torch.Tensor) -> None:
        """Have rows that were run by themselves in the running batch, in free places first."""
        if not self._batches:
            self._batches.append(_Batch([], Slots(self._config)))
        batch = self._batches[0]
        free = [place for place, row in enumerate(batch.rows) if row.over]
        fresh = range(len(batch.rows), len(batch.rows) + max(0, len(rows) - len(free)))
        places = [*free, *fresh][: len(rows)]
        batch.slots.join(cache, mask, places)
        batch.rows += rows[len(free) :]
        for place, row in zip(places, rows, strict=True):
            batch.rows[place] = row

    def _prompt(self, row: _Row) -> torch.Tensor:
        """Embed what a row reads before it goes on, behind its prefix -> [T, D]."""
        parts = [self._embedded(row.request.prompt)]
        if row.written:  # it had to begin again
            parts.append(self._embed(row.written))
        if row.request.prefix and not self._shares:
            parts.insert(0, self._embed(list(row.request.prefix)))
        return torch.cat(parts)

    def _embedded(self, prompt: list[int] | torch.Tensor) -> torch.Tensor:
        return prompt if isinstance(prompt, torch.Tensor) else self._embed(prompt)

    def _run_prefix(self, prefix: Prefix, cache: Cache) -> None:
        expert, ids = prefix
        embeds = self._embed(list(ids))[None]
        mask = torch.ones(1, len(ids), dtype=torch.long, device=embeds.device)
        with self.around([expert]):
            self._run(embeds, mask, mask.cumsum(1) - 1, cache)

    def _run(
        self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Run some positions behind what is cached -> the last one's states [B, D]."""
        out = self._decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

    def _begin_again(self) -> None:
        """Put all rows back after memory ran out; half as many of them run together from now on."""
        if self._tried <= 1:
            number = [*self._under_way(), *self._waiting][0].number
            self.drop([number])
            self._batches = []
            error = SettingsError(
                "one prompt does not fit in memory; lower its budget (decoding.max_new_tokens, of the expert "
                "readout.max_new_tokens), or use a smaller model"
            )
            raise FailedRequestError(number, error)
        self._waiting.extendleft(sorted(self._under_way(), key=lambda row: -row.number))
        self._batches, self._rows = [], self._tried // 2
        free_memory()
        say(
            f"  out of memory with {self._tried} prompts at once: going on with {self._rows}; lower "
            "decoding.batch_size, of the expert readout.batch_tokens"
        )


def _likeliest(logits: torch.Tensor, total: torch.Tensor, count: int) -> Likely:
    """Return each row's likeliest tokens and their log-probabilities: [B, V], [B] -> [B, K]."""
    best = logits.float().topk(min(count, logits.shape[-1]))
    return Likely(best.indices, best.values - total[:, None])

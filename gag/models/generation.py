"""Continue prompts with transformers.

One pass over all prompts, then one token a step from cached keys and values.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache, PretrainedConfig

from gag.models.language_model import Finish, Request, Token, pad_left
from gag.models.sampling import choose

CROWDED = 0.75  # of a batch's rows: when no more are unfinished, the finished ones leave it


class TransformersGenerator:
    """All requests start together; a row that is finished leaves the batch."""

    def __init__(
        self,
        decoder: torch.nn.Module,
        config: PretrainedConfig,
        stops: frozenset[int],
        embed: Callable[[list[int]], torch.Tensor],
        logits: Callable[[torch.Tensor], torch.Tensor],
    ):
        self._decoder, self._config, self._stops, self._embed, self._logits = (
            decoder,
            config,
            stops,
            embed,
            logits,
        )
        self._rows: list[int] = []  # of the batch: the request of each row, or -1 once it is finished
        self._next: list[int] | None = None  # tokens that were chosen and not run yet

    @torch.no_grad()
    def start(self, requests: Sequence[Request]) -> None:
        """Run the prompts, each [T, D]."""
        self._requests, self._steps, self._next = list(requests), 0, None
        self._rows = [i for i, request in enumerate(requests) if request.max_new_tokens > 0]
        if not self._rows:
            return
        inputs = pad_left([self._requests[i].embeds for i in self._rows])
        self._mask, self._cache = inputs.mask, DynamicCache(config=self._config)
        self._last = self._run(inputs.embeds, inputs.positions)  # [B, D]

    @torch.no_grad()
    def step(self) -> list[Token]:
        """Choose the next token of every unfinished request."""
        if all(request < 0 for request in self._rows):
            return []
        if self._next is not None:
            self._advance(self._next)
        logits = self._logits(self._last)  # [B, V]
        samplings = [self._requests[i].sampling if i >= 0 else None for i in self._rows]
        chosen = choose(logits, samplings, self._steps)
        chances = logits.gather(1, chosen[:, None])[:, 0].float() - logits.float().logsumexp(-1)
        self._steps += 1
        self._next = chosen.tolist()
        rows = zip(self._rows, self._next, chances.tolist(), strict=True)
        tokens = [Token(i, id, chance, self._finish(i, id)) for i, id, chance in rows if i >= 0]
        finished = {token.request for token in tokens if token.finish}
        self._rows = [-1 if i in finished else i for i in self._rows]
        return tokens

    def _finish(self, request: int, token: int) -> Finish | None:
        if token in self._stops:
            return "stop"
        return "length" if self._steps >= self._requests[request].max_new_tokens else None

    def _advance(self, tokens: list[int]) -> None:
        """Run the chosen tokens; finished rows leave once they are many."""
        alive = [row for row, request in enumerate(self._rows) if request >= 0]
        if len(alive) <= CROWDED * len(self._rows):
            kept = torch.tensor(alive, device=self._mask.device)
            self._reorder(kept)
            self._mask, self._rows = self._mask[kept], [self._rows[row] for row in alive]
            tokens = [tokens[row] for row in alive]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        embeds = self._embed(tokens)[:, None]  # [B, 1, D]
        self._last = self._run(embeds, self._mask.sum(1, keepdim=True) - 1)

    def _reorder(self, kept: torch.Tensor) -> None:
        """Keep some rows of the cache; layers with a running state know no other way than this."""
        self._cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]

    def _run(self, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Run some positions behind what is cached -> the last one's states [B, D]."""
        out = self._decoder(
            inputs_embeds=embeds,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

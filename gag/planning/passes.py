"""The forward passes of a dry run: of rows only their number and their lengths in tokens are known."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from gag.models.backbone import Backbone


def blank(model: Backbone, rows: int, tokens: int) -> torch.Tensor:
    """Make embeddings without values [B, T, D]."""
    return torch.empty(rows, tokens, model.width, dtype=model.model.dtype)


def forward(model: Backbone, embeds: torch.Tensor, cache: Any = None, cached: int = 0) -> torch.Tensor:
    """Run embeddings [B, T, D] through the decoder, behind `cached` tokens of a cache -> states [B, T, D]."""
    mask = torch.ones(len(embeds), cached + embeds.shape[1], dtype=torch.long)
    return model.decoder(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=mask[:, cached:],  # of positions only the shape counts
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


@torch.no_grad()
def generate(model: Backbone, rows: int, prompt: int, new: int) -> int:
    """Decode the first and the last of some new tokens; return the final cache's bytes.

    In between nothing but the cache grows, so that the heaviest moment is one of these two.
    """
    if new == 0:
        return 0
    cache: Any = DynamicCache(config=model.model.config)
    _decode_token(model, blank(model, rows, prompt), cache, cached=0)
    for layer in cache.layers:
        _grow(layer, prompt + new - 1)
    _decode_token(model, blank(model, rows, 1), cache, cached=prompt + new - 1)
    return sum(_bytes(layer) for layer in cache.layers)


def _grow(layer: Any, tokens: int) -> None:
    """Give a layer the keys and values of so many tokens; a window holds the last ones alone."""
    keys = getattr(layer, "keys", None)
    if keys is None:  # a running state, which does not grow
        return
    held = tokens
    if isinstance(layer, DynamicSlidingWindowLayer):
        held, layer.cumulative_length = min(tokens, layer.sliding_window - 1), tokens
    values: torch.Tensor = layer.values  # pyright: ignore[reportAssignmentType]
    layer.keys = keys.new_empty(*keys.shape[:2], held, keys.shape[3])
    layer.values = values.new_empty(*values.shape[:2], held, values.shape[3])


def _bytes(layer: Any) -> int:
    """Return the bytes of a layer's keys and values, or of its running states."""
    states = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    for name in ("conv_states", "recurrent_states"):
        states += getattr(layer, name, {}).values()
    return sum(state.nbytes for state in states if state is not None)


def _decode_token(model: Backbone, embeds: torch.Tensor, cache: Any, cached: int) -> None:
    model.logits(forward(model, embeds, cache, cached)[:, -1]).float()


def answer_states(
    base: Backbone, vectors: torch.Tensor, shared: int, before: int, after: int
) -> torch.Tensor:
    """Run alignment's forward pass (gag.projection.alignment): [B, S, Db] -> states [B, S + `after`, Db].

    Of the `before` tokens, the `shared` ones run once and the others on each row, all without gradient. The
    vectors and the `after` tokens behind them run with gradient. A model with a running state runs all.
    """
    rows, cache = len(vectors), DynamicCache()
    if base.recurrent:
        tokens = blank(base, rows, before), vectors.to(base.model.dtype), blank(base, rows, after)
        return forward(base, torch.cat(tokens, 1))[:, before:]
    with torch.no_grad():
        forward(base, blank(base, 1, shared), cache)
        cache.batch_repeat_interleave(rows)
        forward(base, blank(base, rows, before - shared), cache, shared)
        tokens = blank(base, rows, after)
    return forward(base, torch.cat([vectors.to(tokens), tokens], 1), cache, before)

"""What many prompts begin with: run once, and its keys and values put ahead of every prompt that has it."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache

KEPT = 64  # prefixes

Prefix = tuple[str, tuple[int, ...]]  # whose expert's, and its tokens


class Prefixes:
    """Prefixes of a model whose layers keep the keys and values of all tokens.

    Args:
        config: the model's.
    """

    def __init__(self, config: PretrainedConfig):
        self._config = config
        self._known: OrderedDict[Prefix, Cache] = OrderedDict()

    def ahead(
        self, rows: list[Prefix], mask: torch.Tensor, run: Callable[[Prefix, Cache], object]
    ) -> tuple[Cache, torch.Tensor]:
        """Put prefixes ahead of rows [B, T], padded on the left -> a cache of them, and the mask of both.

        One that is new is put through the model alone: `run` has its keys and values go into a cache.
        """
        cache, longest = DynamicCache(config=self._config), max(len(ids) for _, ids in rows)
        if not longest:
            return cache, mask
        known = [self._of(prefix, run) if prefix[1] else None for prefix in rows]
        for number, mine in enumerate(cache.layers):
            for keys, values in _stacked([one and one.layers[number] for one in known], longest):
                mine.update(keys, values)  # pyright: ignore[reportAttributeAccessIssue]
        lengths = torch.tensor([[len(ids)] for _, ids in rows], device=mask.device)
        ahead = torch.arange(longest, 0, -1, device=mask.device) <= lengths  # [B, longest]
        return cache, torch.cat([ahead.to(mask), mask], 1)

    def _of(self, prefix: Prefix, run: Callable[[Prefix, Cache], object]) -> Cache:
        if prefix not in self._known:
            cache = DynamicCache(config=self._config)
            run(prefix, cache)
            self._known[prefix] = cache
        self._known.move_to_end(prefix)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return self._known[prefix]


def _stacked(layers: list[Any], longest: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Stack one layer's keys and values of some rows, padded on the left: B x [1, H, t, D] -> [B, H, T, D].

    None stands for a row without any; a layer that shares another's has nothing to stack.
    """
    some = next(layer for layer in layers if layer)
    if some.keys is None:
        return []
    size = len(layers), some.keys.shape[1], longest
    keys, values = (kept.new_zeros(*size, kept.shape[3]) for kept in (some.keys, some.values))
    for i, layer in enumerate(layers):
        if layer:
            start = longest - layer.keys.shape[2]
            keys[i, :, start:], values[i, :, start:] = layer.keys[0], layer.values[0]
    return [(keys, values)]

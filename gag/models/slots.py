"""Keys and values of a batch whose rows come and go: each row has a place, each layer one buffer with room.

A row's tokens end in the last column, whatever its length. One that joins takes the place of one that left,
and nothing else is copied; columns that no row needs any more are cut off by moving the first one.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64  # columns by which a buffer grows at least
_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)


def kept_by(config: PretrainedConfig) -> Literal["keys", "windows", "states"]:
    """Say what a model's layers keep: all keys and values, in some those of a window, or running states."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds == {DynamicLayer}:
        return "keys"
    return "windows" if kinds <= {*_PLAIN} else "states"


class SlotLayer(DynamicLayer):
    """One layer's buffers [rows, heads, columns, width]; what is in use of them are the first columns' views.

    A layer with a sliding window keeps all its tokens too: the mask does the sliding.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make buffers of the first tokens' kind [B, H, T, D]."""
        super().lazy_initialization(key_states, value_states)
        self.first = self.last = 0  # columns in use
        self.rows = len(key_states)
        self._kept = [_zeros(states, self.rows, ROOM) for states in (key_states, value_states)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write some tokens behind what is kept -> all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        self._make_room(self.rows, behind=count)
        for buffer, states in zip(self._kept, (key_states, value_states), strict=True):
            buffer[: self.rows, :, self.last : self.last + count] = states
        self.last += count
        return self._show()

    def widen(self, columns: int) -> None:
        """Have some more columns ahead of the first one; rows that use them write them first."""
        self._make_room(self.rows, ahead=columns)
        self.first -= columns
        self._show()

    def narrow(self, columns: int) -> None:
        """Forget the first columns, which no row needs."""
        self.first += columns
        self._show()

    def put(self, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write whole rows [N, H, T, D] at places; they end where all others do."""
        self._make_room(max(self.rows, int(places.max()) + 1))
        self.rows = max(self.rows, int(places.max()) + 1)
        for buffer, states in zip(self._kept, (keys, values), strict=True):
            buffer[places, :, self.last - states.shape[-2] : self.last] = states
        self._show()

    def move(self, sources: torch.Tensor, places: torch.Tensor, rows: int) -> None:
        """Move rows to other places, and keep the first `rows`."""
        if len(sources):
            for buffer in self._kept:
                buffer[places, :, self.first : self.last] = buffer[sources, :, self.first : self.last]
        self.rows = rows
        self._show()

    def _make_room(self, rows: int, ahead: int = 0, behind: int = 0) -> None:
        kept = self._kept[0]
        if rows <= len(kept) and ahead <= self.first and self.last + behind <= kept.shape[-2]:
            return
        used = self.last - self.first
        wanted = ahead + used + behind
        ahead += ROOM // 4 if ahead else 0
        more_rows = len(kept) if rows <= len(kept) else max(rows, 2 * len(kept))
        grown = [_zeros(one, more_rows, ahead + wanted + max(ROOM, wanted // 4)) for one in self._kept]
        for new, old in zip(grown, self._kept, strict=True):
            new[: len(old), :, ahead : ahead + used] = old[:, :, self.first : self.last]
        self._kept, self.first, self.last = grown, ahead, ahead + used

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (one[: self.rows, :, self.first : self.last] for one in self._kept)
        return self.keys, self.values


class Slots:
    """The rows of a running batch: a cache for the decoder, and which of its columns each row uses."""

    def __init__(self, config: PretrainedConfig):
        self._all = [SlotLayer() for _ in DynamicCache(config=config).layers]
        self.cache = Cache(layers=[*self._all])
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # [B, T]

    def join(self, cache: Cache, mask: torch.Tensor, places: Sequence[int]) -> None:
        """Take rows that were run by themselves: their layers' keys [N, H, T, D], their mask [N, T]."""
        length, wanted = self.mask.shape[1], mask.shape[1]
        if not len(self.mask):
            self.mask = mask.new_zeros(0, 0)
        rows, columns = max(len(self.mask), max(places) + 1), max(length, wanted)
        grown = mask.new_zeros(rows, columns)
        grown[: len(self.mask), columns - length :] = self.mask
        at = torch.tensor(places, device=mask.device)
        grown[at] = 0
        grown[at, columns - wanted :] = mask
        self.mask = grown
        for mine, its in zip(self._all, cache.layers, strict=True):
            if not isinstance(its, DynamicLayer) or its.keys is None or its.values is None:
                continue  # it shares another layer's
            if not mine.is_initialized:
                mine.lazy_initialization(its.keys[:0], its.values[:0])
            if wanted > length:
                mine.widen(wanted - length)
            mine.put(at, its.keys, its.values)
        self._trim()

    def advance(self) -> None:
        """Have one more column, which every row uses."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)

    def keep(self, places: Sequence[int]) -> list[int]:
        """Keep rows, and close the gaps from behind -> the place that each place's row had before."""
        count, kept = len(places), set(places)
        free = [place for place in range(count) if place not in kept]
        last = [place for place in places if place >= count]
        before = list(range(count))
        for place, source in zip(free, last, strict=True):
            before[place] = source
        to, source = (torch.tensor(some, device=self.mask.device, dtype=torch.long) for some in (free, last))
        self.mask[to] = self.mask[source]
        self.mask = self.mask[:count]
        for layer in self._layers():
            layer.move(source, to, count)
        self._trim()
        return before

    def _trim(self) -> None:
        """Cut off the columns ahead of every row's first token."""
        unused = int(self.mask.argmax(1).min()) if len(self.mask) else 0
        self.mask = self.mask[:, unused:]
        for layer in self._layers():
            layer.narrow(unused)

    def _layers(self) -> list[SlotLayer]:
        return [layer for layer in self._all if layer.is_initialized]


class Together(Slots):
    """Rows that stay together: those of layers with running states."""

    def __init__(self, cache: Cache, mask: torch.Tensor):
        self.cache, self.mask = cache, mask

    def keep(self, places: Sequence[int]) -> list[int]:
        """Keep rows -> the place that each place's row had before."""
        kept = torch.tensor(places, device=self.mask.device, dtype=torch.long)
        self.cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
        self.mask = self.mask[kept]
        return list(places)


def _zeros(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Make a buffer; what is masked in it must be numbers."""
    return like.new_zeros(rows, like.shape[1], columns, like.shape[3])

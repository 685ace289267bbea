"""Several LoRA adapters over one model in one pass: each row of a batch goes through its own.

All active adapters' matrices are stacked, and what is not a row's own is masked out between the two: three
small operations for a layer, however many adapters there are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

SPARE = (
    4  # adapters stay stacked while they are at most so many times those in use: stacking takes a step's time
)


@dataclass(frozen=True)
class _Stack:
    """One layer's matrices of some adapters."""

    down: torch.Tensor  # [R, in], R the sum of the ranks
    up: torch.Tensor  # [out, R]
    ranks: tuple[tuple[str, int, float], ...]  # adapter, rank, scaling


class MixedAdapters:
    """Applies adapters row by row while PEFT has them off."""

    def __init__(self) -> None:
        self._layers: list[Any] = []
        self._stacks: dict[int, _Stack] = {}
        self._adapters: tuple[str, ...] = ()
        self._rows: list[str] | None = None
        self._masks: dict[tuple[tuple[str, int, float], ...], torch.Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def look(self, layers: Sequence[Any]) -> None:
        """Look again at PEFT's layers, all of them: adapters came or went."""
        for hook in self._hooks:
            hook.remove()
        self._layers = [layer for layer in layers if type(layer) is Linear]
        self._hooks = [layer.register_forward_hook(self._add) for layer in self._layers]
        self._stacks, self._adapters = {}, ()

    @contextmanager
    def rows(self, adapters: list[str]) -> Iterator[None]:
        """Run batches of B rows, the adapter of each by its name; one that is not loaded is none."""
        active = tuple(sorted(set(adapters)))
        if not set(active) <= set(self._adapters) or len(self._adapters) > SPARE * len(active):
            self._stacks = {id(layer): _stacked(layer, active) for layer in self._layers}
            self._adapters = active
        self._rows, self._masks = adapters, {}
        try:
            yield
        finally:
            self._rows = None

    def _add(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Add to a layer's output [B, T, out] what each row's adapter makes of its input [B, T, in].

        Some models join rows and tokens around a layer: [B * T, in].
        """
        if self._rows is None or not (stack := self._stacks[id(layer)]).ranks:
            return None
        mask = self._masks.get(stack.ranks)
        if mask is None:
            mask = self._masks[stack.ranks] = _mask(stack, self._rows)
        read = inputs[0].to(stack.down.dtype).reshape(len(self._rows), -1, inputs[0].shape[-1])
        added = linear(linear(read, stack.down) * mask, stack.up)
        return output + added.to(output.dtype).reshape(output.shape)


def can_mix(path: str, layer: Any, adapter: str) -> bool:
    """Say whether what a layer has of an adapter is LoRA as published, on rows that keep their places."""
    held = any(adapter in getattr(layer, name, ()) for name in layer.adapter_layer_names)
    return not held or (
        type(layer) is Linear
        and ".experts." not in path  # of a mixture: it gets tokens of any rows
        and adapter not in layer.lora_variant
        and not layer.lora_bias.get(adapter, False)
    )


def _stacked(layer: Any, adapters: tuple[str, ...]) -> _Stack:
    here = [name for name in adapters if name in layer.lora_A]
    if not here:
        return _Stack(torch.empty(0), torch.empty(0), ())
    downs = [layer.lora_A[name].weight for name in here]
    ups = [layer.lora_B[name].weight for name in here]
    ranks = tuple((name, len(down), layer.scaling[name]) for name, down in zip(here, downs, strict=True))
    if len(here) == 1:
        return _Stack(downs[0], ups[0], ranks)
    return _Stack(torch.cat(downs), torch.cat(ups, 1), ranks)


def _mask(stack: _Stack, rows: list[str]) -> torch.Tensor:
    """Return each row's scaling of its own adapter's ranks, and 0 for the others': [B, 1, R]."""
    wanted = [[scaling if row == name else 0.0 for name, _, scaling in stack.ranks] for row in rows]
    counts = torch.tensor([rank for _, rank, _ in stack.ranks])
    return torch.tensor(wanted).repeat_interleave(counts, 1)[:, None].to(stack.down)

"""Run a model without its weights: tensors have shapes and no values, and a meter counts bytes and operations."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """Count the bytes of the storages that live at a time, and the floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **(kwargs or {}), out_val=out) if count else 0
        for storage in (
            leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)
        ):
            if storage not in self._seen:
                self._seen[storage] = True
                self.hold(storage.nbytes())
                weakref.finalize(storage, self.hold, -storage.nbytes())
        return out

    def hold(self, count: int) -> None:
        """Count bytes that begin, or with a minus end, to live."""
        self.live += count
        self.peak = max(self.peak, self.live)


@contextmanager
def dry_run(*models: torch.nn.Module) -> Iterator[Meter]:
    """Run a block on tensors without values, the models' parameters among them; the meter counts those too."""
    with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter:
        made: dict[int, torch.nn.Parameter] = {}
        for module in (module for model in models for module in model.modules()):
            for name, old in module._parameters.items():
                if old is not None and id(old) not in made:
                    made[id(old)] = torch.nn.Parameter(
                        torch.empty(old.shape, dtype=old.dtype), old.requires_grad
                    )
                module._parameters[name] = None if old is None else made[id(old)]
            for name, old in module._buffers.items():
                module._buffers[name] = None if old is None else torch.empty(old.shape, dtype=old.dtype)
        yield meter

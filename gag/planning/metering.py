"""Run a model without its weights: tensors have shapes but no values; a meter counts bytes and operations.

A dry run is an ordinary run of PyTorch code under two modes. `FakeTensorMode` works out each result's
shape and allocates nothing. `Meter` sees each operation, and follows the storages that its results would
have.
"""

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
    """Count the bytes of the storages that live at a time, and the floating-point operations.

    `live` holds the bytes that live now, `peak` the most that lived at a time, `flops` the operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **kwargs, out_val=out) if count else 0
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return out

    def hold(self, count: int) -> None:
        """Count bytes that begin, or with a minus end, to live."""
        self.live += count
        self.peak = max(self.peak, self.live)

    def hold_briefly(self, count: int) -> None:
        """Count bytes that live for a moment beside all others."""
        self.peak = max(self.peak, self.live + count)

    def restart_peak(self) -> int:
        """Return the peak so far, and begin another with what is alive."""
        peak, self.peak = self.peak, self.live
        return peak

    def _follow(self, storage: Any) -> None:
        """Count a storage once, from now until it is freed; views share it."""
        if storage not in self._seen:
            self._seen[storage] = True
            self.hold(storage.nbytes())
            weakref.finalize(storage, self.hold, -storage.nbytes())


@contextmanager
def dry_run(*models: torch.nn.Module) -> Iterator[Meter]:
    """Run a block on tensors without values, the models' parameters among them, under a meter.

    The models' own tensors are replaced for good, and counted: as the block begins, `live` is their bytes.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter:
        made: dict[int, torch.nn.Parameter] = {}
        for module in (module for model in models for module in model.modules()):
            _drop_values(module, made)
        yield meter


def _drop_values(module: torch.nn.Module, made: dict[int, torch.nn.Parameter]) -> None:
    """Replace a module's own tensors; `made` keeps tied parameters one, by the id of the old parameter."""
    for name, old in module._parameters.items():
        if old is not None and id(old) not in made:
            made[id(old)] = torch.nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
        module._parameters[name] = None if old is None else made[id(old)]
    for name, old in module._buffers.items():
        module._buffers[name] = None if old is None else torch.empty(old.shape, dtype=old.dtype)

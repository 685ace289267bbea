"""Processes that work on one stage together, started by torchrun or accelerate launch.

A lone process is rank 0 of 1.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from gag.errors import SettingsError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # for a process whose share of the work takes longer than the others'


def rank() -> int:
    """Return which process this is; the first one (0) alone writes and prints."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        _group().wait_for_everyone()


def broadcast(question: Callable[[], T]) -> T:
    """Ask on the first process, answer on all: files may change between two looks at them."""
    if world_size() == 1:
        return question()
    import torch

    answer: list[Any] = [question() if rank() == 0 else None]
    _group()
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def all_reduce(tensors: "list[torch.Tensor]") -> None:
    """Sum tensors over the processes, in place."""
    if world_size() == 1:
        return
    import torch

    device = _group().device  # a GPU's group takes no tensors of the host
    flat = torch.cat([tensor.flatten().to(device, torch.float32) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def broadcast_tensors(tensors: "list[torch.Tensor]") -> None:
    """Give every process the first one's tensors, in place."""
    if world_size() == 1:
        return
    import torch

    device = _group().device
    for tensor in tensors:
        sent = tensor.detach().to(device)
        torch.distributed.broadcast(sent, 0)
        with torch.no_grad():
            tensor.copy_(sent)


def destroy() -> None:
    """Take the processes' group down, if there is one."""
    if world_size() > 1 and _group.cache_info().currsize:
        _group().destroy_process_group()


@cache
def _group() -> Any:
    import torch
    from accelerate import PartialState

    processes, accelerators = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.accelerator.device_count()
    if 0 < accelerators < processes:
        raise SettingsError(
            f"{processes} processes were started for {accelerators} accelerator(s), and each needs its own; "
            f"run: torchrun --nproc-per-node {accelerators} ..."
        )
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)

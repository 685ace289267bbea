"""Rows of unequal length in batches.

Like lengths together, within a budget, and back in the order they came in.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from gag.errors import SettingsError
from gag.project.progress import say

A = TypeVar("A")
B = TypeVar("B")


def length_batches(
    lengths: Sequence[int], tokens: int | None = None, rows: int | None = None
) -> list[list[int]]:
    """Group rows of like length, shortest first.

    A batch holds at most `rows` rows, and its rows times its longest stay within `tokens`; a longer row goes
    alone.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        size = len(batches[-1]) + 1 if batches else 0
        full = not batches or (tokens and size * lengths[i] > tokens) or (rows and size > rows)
        if full:
            batches.append([i])
        else:
            batches[-1].append(i)
    return batches


def in_length_batches(
    items: Sequence[A],
    work: Callable[[list[A]], Sequence[B]],
    tokens: int | None = None,
    rows: int | None = None,
    length: Callable[[A], int] = len,  # pyright: ignore[reportArgumentType]
) -> list[B]:
    """Do some work on batches of like length; the results stand in the order of the items.

    A batch that does not fit in memory is halved.

    Raises:
        SettingsError: one item alone does not fit.
    """
    waiting, found = length_batches([length(item) for item in items], tokens, rows), {}
    while waiting:
        batch, done = waiting.pop(), None
        with suppress(torch.OutOfMemoryError):  # what failed is freed once this block is left
            done = work([items[i] for i in batch])
        if done is None:
            waiting += _halves(batch)
        else:
            found |= zip(batch, done, strict=True)
    return [found[i] for i in range(len(items))]


def _halves(batch: list[int]) -> list[list[int]]:
    if len(batch) == 1:
        raise SettingsError(
            "one text alone does not fit in memory; lower its budget of tokens (of the expert "
            "readout.max_new_tokens), or use a smaller model"
        )
    free_memory()
    half = len(batch) // 2
    say(
        f"  out of memory with {len(batch)} texts at once: going on with {half}; lower readout.batch_tokens, "
        "of the router router.batch_size"
    )
    return [batch[half:], batch[:half]]


def free_memory() -> None:
    """Give an accelerator's cached memory back."""
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()

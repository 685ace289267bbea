"""Rows of unequal length in batches.

Like lengths together, within a budget, and back in the order they came in.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

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
    """Do some work on batches of like length; the results stand in the order of the items."""
    found: dict[int, B] = {}
    for batch in length_batches([length(item) for item in items], tokens, rows):
        found |= zip(batch, work([items[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(items))]

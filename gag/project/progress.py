"""Progress for people: a bar on a terminal, nothing in a pipe; one line per finished thing either way."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from gag.project import distributed


def say(line: str) -> None:
    """Print one line for people, on stderr; of several processes, the first one speaks."""
    if distributed.rank() == 0:
        print(line, file=sys.stderr, flush=True)


@cache
def say_once(line: str) -> None:
    """Say a line the first time that it is to be said."""
    say(line)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar on stderr; without a terminal it does nothing."""
    if distributed.rank() > 0 or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "", style="progress.data.speed")

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda steps: progress.advance(task, steps)

"""Work between the parts of a question's way: done at once, or waited for where other machines do it."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from gag.errors import GagError
from gag.models.loading import one_line

T = TypeVar("T")
PATIENCE = 0.01  # seconds
THREADS = 8  # that wait


@dataclass(frozen=True)
class _Task:
    then: Callable[[Any], None]
    failed: Callable[[GagError], None]
    expert: str  # that it reads


class Tasks:
    """Routing and reading, for a loop that is not to stand still while other machines do them.

    Args:
        elsewhere: whether they do; else all is done at once.
    """

    def __init__(self, elsewhere: bool):
        self._pool = ThreadPoolExecutor(THREADS, "gag-elsewhere") if elsewhere else None
        self._open: dict[Future[Any], _Task] = {}

    @property
    def in_use(self) -> set[str]:
        """The experts that are being read."""
        return {task.expert for task in self._open.values()}

    def do(
        self,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[GagError], None],
        expert: str = "",
    ) -> None:
        """Do some work, and go on with what comes of it, in the thread that calls `collect`."""
        task = _Task(then, failed, expert)
        if self._pool:
            self._open[self._pool.submit(work)] = task
            return
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except GagError as error:
            done.set_exception(error)
        _go_on(done, task)

    def collect(self, idle: bool) -> None:
        """Go on with what is done; where the loop is idle, wait a little for it."""
        if self._open:
            wait(self._open, PATIENCE if idle else 0, FIRST_COMPLETED)
        for done in [done for done in self._open if done.done()]:
            _go_on(done, self._open.pop(done))


def _go_on(done: "Future[Any]", task: _Task) -> None:
    try:
        found = done.result()
    except GagError as error:
        task.failed(error)
        return
    except Exception as error:  # noqa: BLE001 - of another machine's reply: those whose task it is are told
        task.failed(GagError(f"another machine answers what cannot be read: {one_line(error)}"))
        return
    task.then(found)

"""Send the rows of a run's log to Weights & Biases, trackio or TensorBoard as well, when asked.

A build is one run there. Its curves are named after domain, stage and tuning, and carry the stage's own
steps; the library's step counts all rows, so that it only rises.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gag.errors import MissingExtraError
from gag.project import distributed


class StageTracker:
    """A stage's curves in a run of a tracking library."""

    def __init__(self, run: "_LibraryRun", stage: str, shared: bool):
        self._run, self._stage, self._shared = run, stage, shared

    def track(self, row: dict[str, Any], part: str = "") -> None:
        """Send the numbers of a row, and its step, under the stage's name and that of a part of it."""
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self._run.send("/".join([self._stage, part] if part else [self._stage]), numbers)

    def finish(self) -> None:
        """End the run, unless other stages go on with it."""
        if not self._shared:
            self._run.finish()


class _LibraryRun:
    def __init__(self, kind: str, name: str, folder: Path):
        self._kind, self._made = kind, _make(kind, name, folder)
        self._sent, self._named = 0, set[str]()

    def send(self, place: str, numbers: dict[str, int | float]) -> None:
        if self._kind == "wandb" and place not in self._named:
            self._made.tracker.define_metric(f"{place}/*", step_metric=f"{place}/step")
        self._named.add(place)
        self._sent += 1
        step = int(numbers["step"]) if self._kind == "tensorboard" else self._sent
        self._made.log({f"{place}/{key}": value for key, value in numbers.items()}, step=step)

    def finish(self) -> None:
        self._made.finish()


class _Build:
    """The build that goes on in this process, if one does, and its run once a stage has something to send."""

    name: str | None = None
    run: _LibraryRun | None = None


@contextmanager
def one_run(name: str) -> Iterator[None]:
    """Have all stages within send their curves to one run of this name."""
    _Build.name = name
    try:
        yield
    finally:
        run, _Build.run, _Build.name = _Build.run, None, None
        if run:
            run.finish()


def tracker(kind: str, domain: str, stage: str, folder: Path) -> StageTracker | None:
    """Return what takes a stage's rows, of the first process alone; TensorBoard writes under `folder`."""
    if kind == "none" or distributed.rank() > 0:
        return None
    run = _Build.run or _LibraryRun(kind, _Build.name or f"{stage} {domain}", folder / "tensorboard")
    if _Build.name:
        _Build.run = run
    return StageTracker(run, f"{domain}/{stage}", shared=_Build.name is not None)


def _make(kind: str, name: str, folder: Path) -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's trackers ask which process they are in
    try:
        if kind == "tensorboard":
            made = tracking.TensorBoardTracker(name, logging_dir=folder)
        else:
            made = {"wandb": tracking.WandBTracker, "trackio": tracking.TrackioTracker}[kind](
                "gag", name=name
            )
        made.start()
        return made
    except ImportError as error:
        raise MissingExtraError(
            f"tracking: {kind} needs the package {kind}; run `pip install {kind}`"
        ) from error

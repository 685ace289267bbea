"""Send the rows of a run's log to Weights & Biases, trackio or TensorBoard as well, when asked."""

from pathlib import Path
from typing import Any

from gag.errors import MissingExtraError
from gag.project import distributed


class LibraryTracker:
    """One run in a tracking library, through accelerate."""

    def __init__(self, kind: str, name: str, folder: Path):
        self._made = _make(kind, name, folder)

    def track(self, row: dict[str, Any]) -> None:
        """Send the numbers of a row."""
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._made.log(numbers, step=row["step"])

    def finish(self) -> None:
        """End the run there, so that the next stage's is another."""
        self._made.finish()


def tracker(kind: str, domain: str, stage: str, folder: Path) -> LibraryTracker | None:
    """Return what takes a run's rows; TensorBoard writes under `folder`, and only the first process sends."""
    if kind == "none" or distributed.rank() > 0:
        return None
    return LibraryTracker(kind, f"{domain}-{stage}", folder / "tensorboard")


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

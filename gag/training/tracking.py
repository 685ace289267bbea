"""Send the rows of a run's log to Weights & Biases, trackio or TensorBoard as well, when asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gag.errors import MissingExtraError
from gag.project import distributed

Track = Callable[[dict[str, Any]], None]


def tracker(kind: str, name: str, folder: Path) -> Track:
    """Return what takes a row; TensorBoard writes under `folder`, and only the first process sends."""
    if kind == "none" or distributed.rank() > 0:
        return lambda row: None
    made = _make(kind, name, folder)

    def track(row: dict[str, Any]) -> None:
        numbers = {
            key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"
        }
        made.log(numbers, step=row["step"])

    return track


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

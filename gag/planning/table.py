"""A plan's figures as lines for a terminal."""

import textwrap

from gag.planning.models import ModelSize
from gag.planning.stages import Stage

WIDTH = 110


def wrapped(text: str) -> list[str]:
    """Break text into lines of the terminal's width."""
    return textwrap.wrap(text, WIDTH)


def model_line(role: str, model: ModelSize) -> str:
    """Describe a model in a line."""
    tied = ", embeddings tied" if model.tied else ""
    parameters = f"{in_thousands(model.parameters)} parameters"
    return f"{role:<10} {parameters}{tied}, {model.dtype}, {in_bytes(model.bytes)}"


def stage_table(stages: list[Stage]) -> list[str]:
    """Describe each stage in a line, under a line of titles."""
    titles = _row("stage", "rows", "tokens", "weights", "peak", "time", "on disk")
    return [titles, *(_stage_row(stage) for stage in stages)]


def in_bytes(count: float) -> str:
    """Write a number of bytes, such as 1.5 GB."""
    return _in_units(count, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")))


def in_seconds(seconds: float) -> str:
    """Write a time, such as 2.5 min."""
    return _in_units(seconds, ((3600, " h"), (60, " min"), (1, " s")))


def in_thousands(count: float) -> str:
    """Write a number, such as 1.5 M for one and a half million."""
    return _in_units(count, ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")))


def _stage_row(stage: Stage) -> str:
    row = _row(
        stage.name,
        str(stage.rows),
        in_thousands(stage.tokens),
        in_bytes(stage.weights),
        in_bytes(stage.peak),
        in_seconds(stage.seconds),
        in_bytes(sum(stage.disk.values())),
    )
    return f"{row}  {'does not fit' if stage.cure else 'fits'}"


def _row(name: str, rows: str, tokens: str, weights: str, peak: str, time: str, disk: str) -> str:
    return f"{name:<10} {rows:>7} {tokens:>8} {weights:>9} {peak:>9} {time:>8} {disk:>9}"


def _in_units(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """Write a value in the largest unit that it fills, or in the smallest."""
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / size:.{0 if size == 1 else 1}f}{name}"

"""What a stage leaves for people: report.md with its settings and figures, and a plot beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gag.project.rows import read_rows

REPORT, PLOT = "report.md", "plot.svg"


@dataclass(frozen=True)
class Curve:
    """A line of a plot: x and y of the same length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curves(log: Path, keys: tuple[str, ...], prefix: str = "") -> list[Curve]:
    """Read the curves of a JSONL log whose rows hold `step` and some of the keys."""
    rows = [row for _, row in read_rows(log)] if log.is_file() else []
    found = []
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            found.append(Curve(f"{prefix}{key}", [x for x, _ in points], [y for _, y in points]))
    return found


def write_report(
    folder: Path,
    title: str,
    facts: dict[str, Any],
    lines: list[Curve],
    axes: tuple[str, str] = ("step", "loss"),
) -> None:
    """Write report.md, and plot.svg if there is anything to plot."""
    parts = [f"# {title}", ""]
    if lines:
        _plot(folder / PLOT, lines, axes)
        parts += [f"![{axes[1]} against {axes[0]}]({PLOT})", ""]
    parts += ["| | |", "|---|---|", *_rows(facts), ""]
    (folder / REPORT).write_text("\n".join(parts), encoding="utf-8")


def _rows(facts: dict[str, Any], prefix: str = "") -> list[str]:
    """Write facts as rows of a table, groups opened."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            shown = (
                f"{value:.4g}"
                if isinstance(value, float)
                else str(value).replace("|", "\\|").replace("\n", " ")
            )
            rows.append(f"| {prefix}{name} | {shown} |")
    return rows


def _plot(path: Path, lines: list[Curve], axes: tuple[str, str]) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    plot = figure.add_subplot()
    for line in lines:
        plot.plot(line.x, line.y, label=line.name, marker="o" if len(line.x) < 30 else None, markersize=3)
    plot.set_xlabel(axes[0])
    plot.set_ylabel(axes[1])
    plot.grid(alpha=0.3)
    plot.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        plot.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})

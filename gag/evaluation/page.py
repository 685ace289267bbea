"""A report as one HTML file that needs no network: headings, tables, pictures; for a phone and for paper."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gag.project.artifacts import write_text

COLOURS = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#64473a", "#6940a5", "#9b9a97", "#dfab01", "#e03e3e")
_STYLE = """
:root{color-scheme:light;--line:#dcdcd8;--soft:#6b6a66;--strong:#1b1b19;--mark:#eef5f8}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1.2rem 1rem 3rem;color:var(--strong);
  font:16px/1.5 system-ui,sans-serif;background:#fff}
h1{font-size:1.45rem;line-height:1.25;margin:.4rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.5rem 0}.verdict{font-size:1.1rem;background:var(--mark);padding:.8rem 1rem;border-radius:.4rem}
.note{color:var(--soft);font-size:.88rem}
.wide{overflow-x:auto;margin:.4rem 0}
table{border-collapse:collapse;font-size:.9rem;min-width:100%}
th,td{padding:.32rem .6rem;border-bottom:1px solid var(--line);
  text-align:right;white-space:nowrap;vertical-align:top}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:9rem}
thead th{color:var(--soft);font-weight:600;white-space:normal}
tr.ours td{font-weight:700;background:var(--mark)}
table.words td{white-space:normal;text-align:left;min-width:8rem}table.words th{text-align:left}
figure{margin:1rem 0}figure svg{width:100%;height:auto;max-width:40rem}
figcaption{color:var(--soft);font-size:.88rem}
details{margin:.6rem 0}summary{cursor:pointer}code{font-size:.85em;overflow-wrap:anywhere}
@media print{body{max-width:none;padding:0;font-size:11px}.wide{overflow:visible}table{font-size:9px}
th,td{padding:.15rem .3rem;white-space:normal}tr,figure{break-inside:avoid}details>*{display:block}}
"""


class Page:
    """A report that grows from top to bottom; every text is escaped."""

    def __init__(self, title: str):
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, kind: str = "") -> None:
        """Add a paragraph; kind `verdict` or `note` changes its look."""
        self._parts.append(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Any]],
        ours: int | None = None,
        words: bool = False,
    ) -> None:
        """Add a table; row `ours` stands out, `words` is for cells of text."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(_row(row, i == ours) for i, row in enumerate(rows))
        kind = ' class="words"' if words else ""
        self._parts.append(
            f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Any, caption: str) -> None:
        """Add a matplotlib figure as a picture in the page itself."""
        self._parts.append(
            f"<figure>{svg(figure, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def facts(self, title: str, facts: dict[str, Any]) -> None:
        """Add names and values that a reader may open."""
        rows = "".join(
            f"<tr><td>{escape(k)}</td><td><code>{escape(shown(v))}</code></td></tr>"
            for k, v in flat(facts).items()
        )
        table = f'<div class="wide"><table class="words"><tbody>{rows}</tbody></table></div>'
        self._parts.append(f"<details><summary>{escape(title)}</summary>{table}</details>")

    def save(self, path: Path) -> None:
        """Write the file."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        icon = '<link rel="icon" href="data:,">'
        parts = "\n".join(self._parts)
        title = f"<title>{escape(self._title)}</title>"
        write_text(
            path,
            f'<!doctype html>\n<html lang="en"><head>{head}{icon}{title}<style>{_STYLE}</style></head>\n'
            f"<body>\n{parts}\n</body></html>\n",
        )


def shown(value: Any) -> str:
    """Write a cell: numbers short, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)


def _row(cells: Sequence[Any], ours: bool) -> str:
    row = "".join(f"<td>{escape(shown(cell))}</td>" for cell in cells)
    return f"<tr{' class=ours' if ours else ''}>{row}</tr>"


def flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Open groups of facts: {"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, Any] = {}
    for name, value in facts.items():
        out |= (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{name}": value}
        )
    return out


def canvas(width: float = 5.2, height: float = 3.6) -> tuple[Any, Any]:
    """Make an empty figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def heatmap(counts: list[list[int]], rows: list[str], columns: list[str], labels: tuple[str, str]) -> Any:
    """Draw a confusion: each row's shares as colour, counts as numbers."""
    side = 0.62 * max(len(rows), len(columns)) + 1.9
    figure, axes = canvas(side, 0.5 * len(rows) + 1.5)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(
                j,
                i,
                str(count),
                ha="center",
                va="center",
                color="white" if shares[i][j] > 0.55 else "black",
                fontsize=9,
            )
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_ylabel(labels[0], fontsize=9)
    axes.set_xlabel(labels[1], fontsize=9)
    axes.spines[:].set_visible(False)
    return figure


def svg(figure: Any, label: str) -> str:
    """Turn a figure into an SVG element whose texts stay texts."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1
    )

"""Put a page's lines into reading order, and join them to paragraphs, headings and tables.

What a person sees as a column is found by the white between: a strip that few lines cross, with prose on both
sides. Lines over the whole width part a page into bands; within one the columns are read one behind another.
"""

import re
import statistics
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from gag.corpus.documents import Block

_BULLET = re.compile(r"^(?:[•▪◦‣·–—*-]\s|\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s)")
_NUMBERED = re.compile(r"^(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|[IVX]{1,5}\.)\s+[A-Z]")


@dataclass(frozen=True)
class Line:
    """A piece of a line, from one white to the next: its box in points, from the page's lower left corner."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    bold: bool
    page: int
    cells: tuple[str, ...] = ()  # of a table's row

    @property
    def middle(self) -> float:
        """Its height on the page."""
        return (self.bottom + self.top) / 2


def in_order(lines: list[Line], width: float) -> list[Line]:
    """Put a page's pieces into reading order, those of one line and column joined."""
    gutters = _gutters(lines, 0.0, width)
    bands: list[list[Line]] = [[]]
    for line in sorted(lines, key=lambda line: -line.middle):
        spans = any(line.left < x < line.right for x in gutters)
        if spans != (
            bool(bands[-1]) and any(one.left < x < one.right for x in gutters for one in bands[-1][-1:])
        ):
            bands.append([])
        bands[-1].append(line)
    ordered: list[Line] = []
    for band in bands:
        columns: dict[int, list[Line]] = {}
        spanning = bool(band) and any(band[0].left < x < band[0].right for x in gutters)
        for line in band:
            columns.setdefault(0 if spanning else sum(line.left > x for x in gutters), []).append(line)
        for place in sorted(columns):
            ordered += _rows(columns[place])
    return ordered


def _gutters(lines: list[Line], left: float, right: float, deep: int = 2) -> list[float]:
    """Find the middles of the white strips between columns, from left to right."""
    inside = [line for line in lines if line.left >= left - 1 and line.right <= right + 1]
    if len(inside) < 16 or not deep:
        return []
    low, high = min(line.left for line in inside), max(line.right for line in inside)
    best: tuple[int, float, float] | None = None
    step = 2.0
    crossing: list[tuple[float, int]] = []
    x = low + 0.2 * (high - low)
    while x < high - 0.2 * (high - low):
        crossing.append((x, sum(line.left < x < line.right for line in inside)))
        x += step
    fewest = min((count for _, count in crossing), default=0)
    for _, run in groupby(crossing, key=lambda pair: pair[1] <= fewest):
        strip = list(run)
        if strip[0][1] <= fewest and (best is None or len(strip) > best[0]):
            best = len(strip), strip[0][0], strip[-1][0]
    if best is None or fewest > 0.3 * len(inside):
        return []
    middle = (best[1] + best[2]) / 2
    sides = [
        [line for line in inside if line.right <= middle],
        [line for line in inside if line.left >= middle],
    ]
    if not all(_is_column(side, high - low) for side in sides):
        return []
    return [*_gutters(lines, left, middle, deep - 1), middle, *_gutters(lines, middle, right, deep - 1)]


def _is_column(lines: list[Line], width: float) -> bool:
    """Say whether lines are prose: several, of some words each, most as wide as the widest."""
    if len(lines) < 6 or statistics.median(len(line.text.split()) for line in lines) < 4:
        return False
    widths = sorted(line.right - line.left for line in lines)
    return widths[-1] > 0.2 * width and statistics.median(widths) > 0.6 * widths[int(0.9 * (len(widths) - 1))]


def _rows(lines: list[Line]) -> list[Line]:
    """Join the pieces of one line, from left to right; the rows of a table keep their cells."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: -line.middle):
        if rows and abs(rows[-1][0].middle - line.middle) < 0.4 * max(line.size, rows[-1][0].size):
            rows[-1].append(line)
        else:
            rows.append([line])
    rows = [sorted(row, key=lambda line: line.left) for row in rows]
    if not rows:
        return []
    edges = min(row[0].left for row in rows), max(row[-1].right for row in rows)
    tabled: set[int] = set()
    for wide, group in groupby(range(len(rows)), key=lambda i: _fills(rows[i], edges)):
        places = list(group)
        pairs = [(a, b) for a, b in pairwise(places) if _aligned(rows[a], rows[b])]
        chained = {b for _, b in pairs} & {a for a, _ in pairs}  # between two others
        tabled |= {i for pair in pairs if not wide or chained & set(pair) for i in pair}
    return [_one(row, i in tabled) for i, row in enumerate(rows)]


def _fills(row: list[Line], edges: tuple[float, float]) -> bool:
    """Say whether a row goes from edge to edge, as a line of prose does whose words are spread."""
    return row[0].left - edges[0] < 3 and edges[1] - row[-1].right < 3


def _aligned(row: list[Line], other: list[Line]) -> bool:
    """Say whether two rows are of one table: each cell but the first stands below one of the other."""
    few, many = sorted((row[1:], other[1:]), key=len)
    return bool(few) and all(any(_below(cell, above) for above in many) for cell in few)


def _below(cell: Line, above: Line) -> bool:
    edges = (
        cell.left - above.left,
        cell.right - above.right,
        cell.left + cell.right - above.left - above.right,
    )
    return min(map(abs, edges)) < 2.5


def _one(row: list[Line], tabled: bool) -> Line:
    if len(row) == 1:
        return row[0]
    main = max(row, key=lambda line: len(line.text))
    return Line(
        " ".join(line.text for line in row), row[0].left, min(line.bottom for line in row),
        max(line.right for line in row), max(line.top for line in row), main.size, main.bold, row[0].page,
        tuple(line.text for line in row) if tabled else (),
    )  # fmt: skip


def paragraphs(lines: list[Line | Block], body: float) -> list[Block]:
    """Join lines to paragraphs: to the next gap, indent, size, bullet or short end."""
    pitches = [
        a.middle - b.middle for a, b in pairwise(lines)
        if isinstance(a, Line) and isinstance(b, Line) and 0 < a.middle - b.middle < 3 * body
    ]  # fmt: skip
    pitch = statistics.median(pitches) if pitches else 1.2 * body
    blocks: list[Block] = []
    group: list[Line] = []

    def end() -> None:
        if group:
            blocks.extend(_block(group, body))
            group.clear()

    for line in lines:
        if isinstance(line, Block):
            end()
            blocks.append(line)
            continue
        if group and _parts(group, line, pitch):
            end()
        group.append(line)
    end()
    return blocks


def _parts(group: list[Line], line: Line, pitch: float) -> bool:
    """Say whether a line begins a paragraph of its own."""
    last = group[-1]
    down = last.middle - line.middle
    table = bool(line.cells) and bool(last.cells)
    if line.page != last.page or down < 0 or down > (2.5 if table else 1.35) * max(pitch, 1.1 * line.size):
        return True
    if table:
        return False
    if (
        abs(line.size - last.size) > 0.1 * last.size
        or line.bold != last.bold
        or bool(line.cells) != bool(last.cells)
    ):
        return True
    edge, far = min(one.left for one in group), max(one.right for one in group)
    centred = abs(line.left + line.right - last.left - last.right) < 4
    indent = 0.0 if centred else line.left - (edge if len(group) > 1 else last.left)
    short = last.right < far - 0.15 * (far - edge) and len(group) > 1
    starts = bool(_BULLET.match(line.text)) or (indent > 0.8 * line.size and not _BULLET.match(group[0].text))
    return starts or (short and last.text.endswith((".", "!", "?", ":")))


def _block(group: list[Line], body: float) -> list[Block]:
    first = group[0]
    if first.cells:
        if len(group) > 1:
            return [
                Block("table", "\n".join(f"| {' | '.join(line.cells)} |" for line in group), page=first.page)
            ]
        return [Block("text", first.text, page=first.page)]
    text = _flowing([line.text for line in group])
    words = len(text.split())
    large = first.size > 1.12 * body
    alone = len(group) <= 2 and words <= 14 and not text.endswith((".", ",", ";", ":"))
    named = alone and (_NUMBERED.match(text) or (text.isupper() and len(text) > 5))
    if (
        words <= 30
        and len(group) <= 4
        and any(map(str.isalpha, text))
        and (large or (alone and (first.bold or named)))
    ):
        return [
            Block("heading", text, level=1 if first.size > 1.4 * body else 2 if large else 3, page=first.page)
        ]
    kind = "list" if _BULLET.match(text) else "text"
    return [Block(kind, text, page=first.page)]


def _flowing(lines: list[str]) -> str:
    """Join lines; a word that a line's end parted is one again."""
    text = lines[0]
    for line in lines[1:]:
        if re.search(r"[a-zà-ÿ]-$", text) and line[:1].islower():
            text = text[:-1] + line
        else:
            text = f"{text}{'' if text.endswith(('-', '/')) else ' '}{line}"
    return text


def joined(blocks: list[Block]) -> list[Block]:
    """Have a paragraph that a column's or a page's end parted go on in the one before."""
    found: list[Block] = []
    for block in blocks:
        place = next((i for i in range(len(found) - 1, -1, -1) if found[i].kind != "furniture"), None)
        last = found[place] if place is not None else None
        goes_on = last and last.kind in ("text", "list") and block.kind == "text"
        if (
            last
            and place is not None
            and goes_on
            and re.search(r"[\w,;)-]$", last.text)
            and block.text[:1].islower()
        ):
            found[place] = replace(last, text=_flowing([last.text, block.text]))
        else:
            found.append(block)
    return found

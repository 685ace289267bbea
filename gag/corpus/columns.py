"""Put a page's lines into reading order.

What a person sees as a column is found by the white between: a strip that few lines cross, with prose on both
sides. Lines over the whole width part a page into bands; within one the columns are read one behind another.
"""

import statistics
from itertools import groupby, pairwise

from gag.corpus.layout import Line, is_prose, joined_rows, pieces

PROSE = 0.35  # of a column's rows; the others are tables and captions


def usual_gutters(pages: list[tuple[float, list[Line]]]) -> list[float]:
    """Find the gutters that several pages have: one whose column is a table has them too."""
    found = sorted(x for width, lines in pages for x in _gutters(lines, 0.0, width))
    groups: list[list[float]] = []
    for x in found:
        if groups and x - groups[-1][-1] < 6:
            groups[-1].append(x)
        else:
            groups.append([x])
    return [statistics.median(group) for group in groups if len(group) >= max(2, 0.3 * len(pages))]


def in_order(lines: list[Line], width: float, usual: list[float]) -> list[Line]:
    """Put a page's pieces into reading order, those of one line and column joined.

    Args:
        lines: the page's.
        width: the page's, in points.
        usual: gutters of the document's other pages, where this one shows none.
    """
    gutters = _gutters(lines, 0.0, width) or [
        x for x in usual if sum(line.left < x < line.right for line in lines) <= 0.3 * len(lines)
    ]
    rows = pieces(lines)
    ordered: list[Line] = []
    for spanning, band in groupby(zip(rows, _spanning(rows, gutters), strict=True), key=lambda pair: pair[1]):
        columns: dict[int, list[Line]] = {}
        for line in (line for row, _ in band for line in row):
            columns.setdefault(0 if spanning else sum(line.left > x for x in gutters), []).append(line)
        for place in sorted(columns):
            ordered += joined_rows(columns[place])
    return ordered


def _spanning(rows: list[list[Line]], gutters: list[float]) -> list[bool]:
    """Say which rows go over all columns: what crosses a gutter, and tables with cells on both its sides."""
    if not gutters:
        return [False] * len(rows)
    edges = [min(row[0].left for row in rows), *gutters, max(row[-1].right for row in rows)]
    narrow = min(right - left for left, right in pairwise(edges))
    crosses = [any(line.left < x < line.right for x in gutters for line in row) for row in rows]
    cells = [
        len(row) > 2 and (crossing or any(_on_both_sides(row, x, narrow) for x in gutters))
        for row, crossing in zip(rows, crosses, strict=True)
    ]
    runs = [list(group) for _, group in groupby(range(len(rows)), key=lambda i: cells[i])]
    tables = {i for run in runs if cells[run[0]] and len(run) > 2 for i in run}
    return [crossing or i in tables for i, crossing in enumerate(crosses)]


def _on_both_sides(row: list[Line], x: float, narrow: float) -> bool:
    """Say whether a table's cells stand on both sides of a gutter, and no line of prose on one."""
    sides = [line for line in row if line.right <= x], [line for line in row if line.left >= x]
    short = all(line.right - line.left < 0.55 * narrow for line in row)
    return short and all(side and not is_prose(side) for side in sides)


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
    """Say whether lines are a column: several as wide as the widest are prose, tables may be among them."""
    rows = pieces(lines)
    widths = sorted(row[-1].right - row[0].left for row in rows)
    if len(rows) < 6 or widths[-1] < 0.2 * width:
        return False
    wide = [row for row in rows if row[-1].right - row[0].left > 0.6 * widths[int(0.9 * (len(widths) - 1))]]
    prose = sum(is_prose(row) for row in wide)
    return prose >= 6 and prose >= PROSE * len(rows)

"""Join the pieces of a page's lines: to rows, and rows to paragraphs, headings and tables."""

import re
import statistics
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from gag.corpus.documents import Block

SMALL = 0.93  # of the body's size: footnotes and captions
_BULLET = re.compile(r"^(?:[•▪◦‣·–—*-]\s|\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s|\[\d{1,3}\]\s)")
_SPACELESS = re.compile("[\u3001-\u30ff\u3400-\u9fff\uff01-\uff60]")  # Chinese and Japanese
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


def is_prose(row: list[Line]) -> bool:
    """Say whether the pieces of a row are words of a sentence, and not a table's cells."""
    words = sum(len(line.text.split()) for line in row)
    return words >= 4 and words >= 2 * len(row)


def pieces(lines: list[Line]) -> list[list[Line]]:
    """Part lines into rows, from top to bottom, each from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: -line.middle):
        if rows and abs(rows[-1][0].middle - line.middle) < 0.4 * max(line.size, rows[-1][0].size):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.left) for row in rows]


def joined_rows(lines: list[Line]) -> list[Line]:
    """Join the pieces of one line, from left to right; the rows of a table keep their cells."""
    rows = pieces(lines)
    if not rows:
        return []
    edges = min(row[0].left for row in rows), max(row[-1].right for row in rows)
    tabled: set[int] = set()
    for wide, group in groupby(range(len(rows)), key=lambda i: _fills(rows[i], edges)):
        places = list(group)
        pairs = [(a, b) for a, b in pairwise(places) if _aligned(rows[a], rows[b])]
        chained = {b for _, b in pairs} & {a for a, _ in pairs}  # between two others
        tabled |= {i for pair in pairs if not wide or chained & set(pair) for i in pair}
        tabled |= {i for i in places if not wide and len(rows[i]) > 2 and not is_prose(rows[i])}
    return [_one(row, i in tabled) for i, row in enumerate(rows)]


def _fills(row: list[Line], edges: tuple[float, float]) -> bool:
    """Say whether a row goes from edge to edge, as a line of prose does whose words are spread."""
    return row[0].left - edges[0] < 3 and edges[1] - row[-1].right < 3


def _aligned(row: list[Line], other: list[Line]) -> bool:
    """Say whether two rows are of one table: each cell but the first stands below one of the other.

    Lines of prose that were spread by chance do so too, but not at their left.
    """
    few, many = sorted((row[1:], other[1:]), key=len)
    below = _below_left if is_prose(row) or is_prose(other) else _below
    return bool(few) and all(any(below(cell, above) for above in many) for cell in few)


def _below_left(cell: Line, above: Line) -> bool:
    return abs(cell.left - above.left) < 2.5


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
    ended = last.text.endswith((".", "!", "?", ":"))
    if len(group) == 1 and not ended and last.right > line.right - 2 * line.size:
        indent = min(indent, 0.0)  # an entry whose further lines are set in
    narrow = last.right - last.left < 0.5 * (line.right - line.left)
    outdent = 0.0 if centred and not narrow else last.left - line.left
    hangs = outdent > (0.8 if len(group) > 1 else 4) * line.size  # behind an entry's lines, or a formula
    short = last.right < far - 0.15 * (far - edge) and len(group) > 1
    starts = (
        hangs
        or bool(_BULLET.match(line.text))
        or (indent > 0.8 * line.size and not _BULLET.match(group[0].text))
    )
    return starts or (short and ended)


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
    letters = sum(map(str.isalpha, text))
    loud = text.isupper() and len(text) > 5 and letters > 0.7 * len(text.replace(" ", "")) and "=" not in text
    named = alone and not re.search("[;@]", text) and (_NUMBERED.match(text) or loud)
    if words <= 30 and len(group) <= 4 and letters > 2 and (large or (alone and (first.bold or named))):
        return [
            Block("heading", text, level=1 if first.size > 1.4 * body else 2 if large else 3, page=first.page)
        ]
    kind = "list" if _BULLET.match(text) else "text"
    return [Block(kind, text, page=first.page, note="small" if first.size < SMALL * body else "")]


def _flowing(lines: list[str]) -> str:
    """Join lines; a word that a line's end parted is one again."""
    text = lines[0]
    for line in lines[1:]:
        if re.search(r"[a-zà-ÿ]-$", text) and line[:1].islower():
            text = text[:-1] + line
        elif text.endswith(("-", "/")) or (_SPACELESS.match(text[-1:]) and _SPACELESS.match(line)):
            text = f"{text}{line}"
        else:
            text = f"{text} {line}"
    return text


def joined(blocks: list[Block]) -> list[Block]:
    """Have a paragraph that a column's or a page's end parted go on in the one before.

    What stands between the parts are a page's head and foot, footnotes, tables and captions.
    """
    found: list[Block] = []
    for block in blocks:
        small = block.note == "small"
        places = (
            i for i in range(len(found) - 1, -1, -1)
            if found[i].kind not in ("furniture", "table") and (small or found[i].note != "small")
        )  # fmt: skip
        place = next(places, None)
        last = found[place] if place is not None else None
        goes_on = last and last.kind in ("text", "list") and block.kind == "text"
        if (
            last
            and place is not None
            and goes_on
            and block.page - last.page <= 1
            and re.search(r"[\w,;)，、-]$", last.text)
            and (
                block.text[:1].islower() or (_SPACELESS.match(block.text) and _SPACELESS.match(last.text[-1]))
            )
        ):
            found[place] = replace(last, text=_flowing([last.text, block.text]))
        else:
            found.append(block)
    return found

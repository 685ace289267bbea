"""Read a PDF: its characters become pieces of lines; `columns` puts them in order, `layout` joins them."""

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdfium2
from pypdfium2 import raw

from gag.corpus.columns import in_order, usual_gutters
from gag.corpus.documents import Block
from gag.corpus.layout import SMALL, Line, joined, paragraphs, pieces
from gag.errors import DataError

GAP = 0.95  # of the size: a wider one is between columns or cells, no space between words
MARGIN = 0.1  # of a page's height, where headers and footers are
WHITE = 1.8  # of the size: between a running title and the text
SWAY = 1.0  # of a point: between the heights of one header on two pages
_WORD = re.compile(r"(?<!\S)[^\W\d_A-Z]{2,}(?=[\s,.;:)]|$)")  # of a sentence, not of code
_NO_LETTERS = re.compile("[\u25a0\u25a1\u2700-\u27bf\ue000-\uf8ff\ufffd]")  # boxes, dingbats, private signs
_BOLD = re.compile(rb"bold|black|heavy|demi|cm(?:ss|b)?bx|sf(?:ss)?bx|medi(?!u)", re.IGNORECASE)
_ROMAN = re.compile(r"\W*(?=[ivxlc])(?:x?c|x?l)?x{0,3}(?:ix|iv|v?i{0,3})\W*", re.IGNORECASE)
_NUMBER = re.compile(r"\W*(?:page )?\d+\W*(?:(?:of|/) \d+)?\W*", re.IGNORECASE)
EMPTY = 8  # characters a page; fewer are none that was meant to be read


def pdf_blocks(path: Path) -> tuple[list[Block], int]:
    """Read a PDF -> its blocks in reading order, and how many pages it has.

    Raises:
        DataError: it is encrypted or not whole, or it has pictures of pages in the place of text.
    """
    try:
        with pypdfium2.PdfDocument(path) as pdf:
            pages = [(*page.get_size(), list(_lines(page, number))) for number, page in enumerate(pdf, 1)]
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise DataError("it is encrypted; save it without its password") from error
        raise DataError("it is no whole PDF; fetch it again") from error
    if sum(len(line.text) for _, _, lines in pages for line in lines) < EMPTY * len(pages):
        raise DataError(
            f"it has no text: {len(pages)} pages are pictures; have them read by MinerU (pip "
            "install mineru), and name its output folder"
        )
    signs = "".join(line.text for _, _, lines in pages for line in lines)
    if len(_NO_LETTERS.findall(signs)) > 0.2 * len(signs):
        raise DataError("its letters have no meaning: its fonts do not name them; have it read by MinerU")
    body = _body_size(lines for _, _, lines in pages)
    furniture = _furniture(pages, body)
    ordered: list[Line | Block] = []
    texts = [(width, [line for line in lines if line not in furniture]) for width, _, lines in pages]
    usual = usual_gutters(texts)
    for (width, text), (_, _, lines) in zip(texts, pages, strict=True):
        ordered += [Block("furniture", line.text, page=line.page) for line in lines if line in furniture]
        ordered += in_order(text, width, usual)
    return joined(paragraphs(ordered, body)), len(pages)


def _lines(page: Any, number: int) -> Iterator[Line]:
    """Yield the pieces of lines as the page holds them."""
    text = page.get_textpage()
    count, handle = text.count_chars(), text.raw
    box = [ctypes.c_double() for _ in range(4)]
    chars: list[str] = []
    edges: list[tuple[float, float, float, float]] = []
    first = 0
    for i in range(count):
        char = chr(raw.FPDFText_GetUnicode(handle, i))
        made = char in "\r\n" or char.isspace()
        if not made:
            raw.FPDFText_GetCharBox(handle, i, *box)
            left, right, bottom, top = (edge.value for edge in box)
            if edges and _breaks(edges[-1], (left, bottom, right, top)):
                yield from _line(handle, chars, edges, first, number)
                chars, edges = [], []
            first = first if edges else i
            edges.append((left, bottom, right, top))
            chars.append("-" if char in "\x02\u00ad\ufffe" else char)
        elif char in "\r\n" and edges:
            yield from _line(handle, chars, edges, first, number)
            chars, edges = [], []
        elif edges and chars[-1] != " ":
            chars.append(" ")
    yield from _line(handle, chars, edges, first, number)


def _breaks(last: tuple[float, float, float, float], now: tuple[float, float, float, float]) -> bool:
    """Say whether a character stands too far from the one before to be of the same piece."""
    height = max(last[3] - last[1], now[3] - now[1], 4.0)
    apart = now[0] - last[2] > max(GAP * 1.35 * height, 9.0) or now[2] < last[0] - 2 * height
    return apart or min(last[3], now[3]) + 0.6 * height < max(last[1], now[1])


def _line(handle: Any, chars: list[str], edges: list[Any], first: int, number: int) -> Iterator[Line]:
    words = "".join(chars).strip()
    if not words or abs(raw.FPDFText_GetCharAngle(handle, first)) > 0.2:  # what stands on its side is no text
        return
    size = raw.FPDFText_GetFontSize(handle, first)
    left, bottom, right, top = zip(*edges, strict=True)
    bold = _is_bold(handle, first) and _is_bold(handle, first + len(edges) // 2)
    size = size if size > 2 else max(top) - min(bottom)
    yield Line(words, min(left), min(bottom), max(right), max(top), float(size), bold, number)


def _is_bold(handle: Any, place: int) -> bool:
    """Say whether a character's font is named so; its weight is a guess, and a wrong one for TeX's."""
    buffer, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(handle, place, buffer, 128, ctypes.byref(flags))
    return bool(_BOLD.search(buffer.value))


def _furniture(pages: list[tuple[float, float, list[Line]]], body: float) -> set[Line]:
    """Find headers and footers: what repeats at one height of the pages' edges, and numbers alone there.

    A table's cells may stand at an edge too: no white parts them from the text, and a number is not alone.
    """
    edges = [_edges(lines, height) for _, height, lines in pages]
    apart = {line for outside, _ in edges for line in outside}
    last = {line for _, outermost in edges for line in outermost}
    forms: dict[str, list[Line]] = {}
    for line in (line for _, outermost in edges for line in outermost):
        forms.setdefault(re.sub(r"\d+", "#", line.text.lower()), []).append(line)
    for line in apart - last:
        forms.setdefault(re.sub(r"\d+", "#", line.text.lower()), []).append(line)
    few = 2 if len(pages) < 6 else 3
    found: set[Line] = set()
    maybe: set[Line] = set()  # they count where all of their row repeats
    for level in (level for lines in forms.values() for level in _levels(lines)):
        same = Counter(line.text for line in level)
        if len(level) >= few and _counts_pages(level):
            found.update(level)
        elif not _NUMBER.fullmatch(level[0].text):
            often = len(level) >= max(few, 0.3 * len(pages))
            small = {line for line in level if often and line in apart and line.size < SMALL * body}
            maybe.update(small, (line for line in level if same[line.text] >= few))
    beside = {line: _beside(line, pages) for line in apart | maybe}
    found |= {line for line in maybe if maybe | found >= beside[line]}
    alone = {
        line for line in apart
        if (_NUMBER.fullmatch(line.text) or _ROMAN.fullmatch(line.text)) and found >= beside[line]
    }  # fmt: skip
    if len(pages) < few or _counts_pages([line for line in alone if re.search(r"\d", line.text)]):
        found |= alone
    found |= {line for line in alone if _ROMAN.fullmatch(line.text)}
    return found | {line for line in _apart(pages, few) if line.size < SMALL * body}


def _beside(line: Line, pages: list[tuple[float, float, list[Line]]]) -> set[Line]:
    """Find what stands at a line's height on its page."""
    near = (one for one in pages[line.page - 1][2] if one is not line)
    return {one for one in near if abs(one.middle - line.middle) < 0.4 * max(one.size, line.size)}


def _edges(lines: list[Line], height: float) -> tuple[list[Line], list[Line]]:
    """Find the lines at a page's head and foot that white parts from the text, and those farthest out."""
    outside: list[Line] = []
    outermost: list[Line] = []
    rows = pieces(lines)
    for side, inner in ((rows, 1), (rows[::-1], -1)):
        near = [row for row in side if min(row[0].middle, height - row[0].middle) < MARGIN * height]
        near = [row for row in near if (row[0].middle > height / 2) == (inner > 0)]
        outermost += near[0] if near else []
        for place, row in enumerate(near):
            following = side[place + 1] if place + 1 < len(side) else None
            white = WHITE * max(line.size for line in row)
            if following is None or inner * (row[0].middle - following[0].middle) > white:
                outside += [line for one in near[: place + 1] for line in one]
    return outside, outermost


def _levels(lines: list[Line]) -> Iterator[list[Line]]:
    """Part lines by the height at which they stand on their pages."""
    level: list[Line] = []
    for line in sorted(lines, key=lambda line: line.middle):
        if level and line.middle - level[-1].middle > SWAY:
            yield level
            level = []
        level.append(line)
    yield level


def _apart(pages: list[tuple[float, float, list[Line]]], few: int) -> set[Line]:
    """Find running titles: first lines at one height of many pages, with white below, whatever they say."""
    heights: dict[int, list[Line]] = {}
    for _, height, lines in pages:
        rows = sorted(lines, key=lambda line: -line.middle)
        if not rows or rows[0].middle < (1 - MARGIN) * height:
            continue
        first = [line for line in rows if rows[0].middle - line.middle < 0.5 * rows[0].size]
        below = rows[len(first) :]
        if not below or rows[0].middle - below[0].middle > WHITE * max(rows[0].size, below[0].size):
            heights.setdefault(round(rows[0].middle / 2), []).extend(first)
    return {
        line
        for lines in heights.values()
        if len({line.page for line in lines}) >= max(few, 0.4 * len(pages))
        for line in lines
    }


def _counts_pages(lines: list[Line]) -> bool:
    """Say whether a number in lines grows with the pages that they stand on."""
    ahead = Counter(int(digits) - line.page for line in lines for digits in re.findall(r"\d{1,5}", line.text))
    return bool(ahead) and ahead.most_common(1)[0][1] >= 0.8 * len(lines)


def _body_size(pages: Any) -> float:
    """Return the size that most words of sentences have; examples of code may be longer, and smaller."""
    sizes: Counter[float] = Counter()
    for line in (line for lines in pages for line in lines):
        sizes[round(line.size, 1)] += 1 + 100 * len(_WORD.findall(line.text))
    return sizes.most_common(1)[0][0]

"""PDFs for tests: paragraphs of made-up words in one column or two, with headers, headings and tables."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.platypus import BaseDocTemplate, Frame, FrameBreak, PageTemplate, Paragraph, Table

WORDS = [
    a + b + c for a in ("ka", "lo", "mi", "tre", "vun") for b in ("ta", "ni", "ro") for c in ("d", "n", "rin")
]
BODY = ParagraphStyle("body", fontName="Times-Roman", fontSize=10, leading=12, alignment=4, spaceAfter=6)
HEADING = ParagraphStyle(
    "heading", fontName="Helvetica-Bold", fontSize=13, leading=16, spaceBefore=8, spaceAfter=4
)
TITLE = ParagraphStyle("title", fontName="Helvetica-Bold", fontSize=18, leading=22, alignment=1)
ROWS = [["Membrane", "Weight", "Thickness"], ["Advanced", "780", "50"], ["Stable", "710", "51"]]
MARGIN, GUTTER = 60, 14


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Make paragraphs of 20 to 90 words, each with its number."""
    rng = random.Random(seed)
    return [
        f"Paragraph {i} says {' '.join(rng.choice(WORDS) for _ in range(rng.randint(20, 90)))}."
        for i in range(count)
    ]


def write_pdf(path: Path, texts: list[str], columns: int = 1, tables: bool = True) -> None:
    """Write paragraphs below a title, with a heading over every twelve and a table behind every forty."""
    story = [Paragraph("A Study of Invented Things and Their Many Wonderful Properties", TITLE)]
    story += [FrameBreak()] if columns > 1 else []
    for i, text in enumerate(texts):
        if i % 12 == 0:
            story.append(Paragraph(f"{i // 12 + 1}. Section on {WORDS[i // 12 % len(WORDS)]}", HEADING))
        story.append(Paragraph(text, BODY))
        if tables and i % 40 == 20:
            story.append(Table(ROWS))
    width, height = A4
    inner, column = width - 2 * MARGIN, (width - 2 * MARGIN - GUTTER) / 2
    top = 80 if columns > 1 else 0
    whole = Frame(MARGIN, MARGIN, inner, height - 2 * MARGIN)
    title = Frame(MARGIN, height - MARGIN - top, inner, top or 1)
    both = [
        [Frame(MARGIN + k * (column + GUTTER), MARGIN, column, height - 2 * MARGIN - cut) for k in (0, 1)]
        for cut in (top, 0)
    ]
    document = BaseDocTemplate(str(path), pagesize=A4)
    frames = ([title, *both[0]], both[1]) if columns > 1 else ([whole], [whole])
    document.addPageTemplates(
        [
            PageTemplate(id="first", frames=frames[0], onPage=_decorate, autoNextPageTemplate="next"),
            PageTemplate(id="next", frames=frames[1], onPage=_decorate),
        ]
    )
    document.build(story)


def _decorate(canvas, document) -> None:
    canvas.setFont("Helvetica", 8)
    canvas.drawString(MARGIN, A4[1] - 30, "Journal of Invented Things, Vol. 3")
    canvas.drawCentredString(A4[0] / 2, 25, str(canvas.getPageNumber()))


@dataclass
class Paper:
    """What a paper was made of: its paragraphs, in order, and the first cells of its tables' rows."""

    texts: list[str]
    cells: list[str]


HEADINGS = [
    "Introduction",
    "Reference electrode",
    "Open questions",
    "References to earlier work",
    "Conclusions",
]
INDENTED = ParagraphStyle("indented", parent=BODY, firstLineIndent=12, spaceAfter=0)
SMALL = ParagraphStyle("small", fontName="Times-Roman", fontSize=8.5, leading=10)
HANGING = ParagraphStyle("hanging", parent=SMALL, leftIndent=14, firstLineIndent=-14)
ROMAN = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii", "xiv"]


ENTRIES = {  # how a list of references looks: its entries, and how they are set
    "bracketed": ("[{0}] A. Quist. LISTED {1}. J. Arvo {0}, 100-120 ({2}).", HANGING),
    "headless": ("[{0}] A. Quist. LISTED {1}. J. Arvo {0}, 100-120 ({2}).", HANGING),
    "author-year": ("Quist, A. and Orro, B. ({2}). LISTED {1}. Journal of Arvo, {0}(2), 100-120.", HANGING),
    "numbered": ("{0}. Quist A, Orro B. LISTED {1}. J Arvo. {2};{0}:100-20.", SMALL),
    "plain": ("A. Quist, B. Orro, LISTED {1}, J. Arvo {0} ({2}) 100.", SMALL),
}


def write_paper(path: Path, columns: int, heads: str, entries: str, count: int = 60) -> Paper:
    """Write a paper: authors, abstract, sections, tables that columns' ends part, a footnote, references.

    Its heads and feet are `alternating` titles with numbers, `counted` ("3 of 12"), or `roman` numbers; its
    references one of ENTRIES.
    """
    rng, made = random.Random(7), Paper(paragraphs(count, 5), [])
    story: list[Any] = [
        Paragraph("Charge and Tilt of Membranes in the Valley of Arvo", TITLE),
        Paragraph("Ada Quist, Ben Orro and Cara Lindt", BODY),
        Paragraph("Institute of Valleys, University of Arvo; ada.quist@arvo.edu", BODY),
    ]
    story += [FrameBreak()] if columns > 1 else []
    story += [Paragraph("Abstract", HEADING), Paragraph(made.texts[0], INDENTED)]
    each = -(-(count - 1) // len(HEADINGS))
    for place, text in enumerate(made.texts[1:]):
        if place % each == 0:
            story.append(Paragraph(f"{place // each + 1}. {HEADINGS[place // each]}", HEADING))
        story.append(Paragraph(text, INDENTED))
        if place % 9 == 4:
            rows = [[f"row{place}x{j}", str(rng.randint(100, 999)), f"{rng.random():.2f}"] for j in range(7)]
            story += [Paragraph(f"Table {place}: Values of the valley.", SMALL), Table(rows)]
            made.cells.extend(row[0] for row in rows)
    story += [
        Paragraph("Acknowledgements", HEADING),
        Paragraph("We thank the fund of Arvo, THANKED.", INDENTED),
    ]
    story += [Paragraph("References", HEADING)] if entries != "headless" else []
    form, style = ENTRIES[entries]
    for place in range(40):
        words = " ".join(rng.choice(WORDS) for _ in range(9))
        story.append(Paragraph(form.format(place + 1, words, 2000 + place % 20), style))

    def decorate(canvas: Any, document: Any) -> None:
        number, (width, height) = canvas.getPageNumber(), A4
        canvas.setFont("Times-Roman", 8)
        if heads == "alternating":
            canvas.drawString(MARGIN, height - 34, str(number) if number % 2 else "RUNNING of Arvo")
            canvas.drawRightString(
                width - MARGIN, height - 34, "A. Quist, RUNNING" if number % 2 else str(number)
            )
        else:
            canvas.drawCentredString(
                width / 2, 24, f"{number} of 12" if heads == "counted" else ROMAN[number - 1]
            )
        if number == 1:
            canvas.drawString(MARGIN, 46, "NOTE: to whom letters go.")

    width, height = A4
    column = (width - 2 * MARGIN - (columns - 1) * GUTTER) / columns
    places = [MARGIN + k * (column + GUTTER) for k in range(columns)]
    top = 100 if columns > 1 else 0
    first, others = (
        [Frame(x, MARGIN, column, height - 2 * MARGIN - cut, leftPadding=0, rightPadding=0) for x in places]
        for cut in (top, 0)
    )
    if top:
        first.insert(0, Frame(MARGIN, height - MARGIN - top, width - 2 * MARGIN, top))
    document = BaseDocTemplate(str(path), pagesize=A4)
    document.addPageTemplates(
        [
            PageTemplate(id="first", frames=first, onPage=decorate, autoNextPageTemplate="next"),
            PageTemplate(id="next", frames=others, onPage=decorate),
        ]
    )
    document.build(story)
    return made

"""PDFs for tests: paragraphs of made-up words in one column or two, with headers, headings and tables."""

import random
from pathlib import Path

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

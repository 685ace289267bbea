"""Decide which blocks of a document go, by where they stand and how they look, not by a word in them.

A heading alone cuts nothing: a list of references must look like one, and whoever is thanked must be thanked.
So "Reference electrode" stays, and so does "References" over prose. Each rule names what it cuts, and can be
turned off.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from gag.corpus.documents import Block, Clean, Document
from gag.corpus.references import named, references

RULES = {
    "references": "lists of references",
    "acknowledgements": "thanks, funding, and other statements at a paper's end",
    "authors": "names, affiliations and dates between a paper's title and its abstract",
    "images": "images, and labels of their parts; captions that say something stay",
    "furniture": "headers, footers and page numbers",
    "repeated": "lines that stand in many places of a document",
    "contents": "tables of contents",
}
_THANKS = {
    "acknowledgement", "acknowledgements", "acknowledgment", "acknowledgments", "funding", "funding sources",
    "funding statement", "funding information", "financial support", "author contributions",
    "author contribution", "authors' contributions", "author contribution statement",
    "credit authorship contribution statement", "conflict of interest", "conflicts of interest",
    "conflict of interest statement", "competing interests", "competing interest",
    "declaration of competing interest", "declaration of interests", "disclosure", "disclosures",
    "author information", "about the authors", "notes on contributors", "danksagung", "remerciements", "致谢",
}  # fmt: skip
_THANKING = re.compile(
    r"\b(?:thank|grateful|gratitude|support|fund|grant|acknowledg|sponsor|financ|contribut|conflict|interest|"
    r"declare|author|conceiv|wrote|dank|remerci)|感谢|资助",
    re.IGNORECASE,
)
_RUN_IN = re.compile(
    r"^[*_]{0,3}(?P<name>[A-Z][A-Za-z' ]{4,45}?)[*_]{0,3}\s*[.:—–-][*_]{0,3}\s+\S", re.DOTALL
)
_NAMES = re.compile(
    r"^[\W\d]*(?:[A-Z][\w.'’-]*[\s,;&*†‡§∗\d]*(?:and|und|et|de|van|von|der|la|le|di)?[\s,;]*){2,}$"
)
_PLACE = re.compile(
    r"universit|institut|department|\bdept\b|laborator|college|\bschool of|faculty|cent(?:er|re)\b|hospital|"
    r"academy|corporation|\binc\b|\bltd\b|gmbh|\bllc\b|co\.,|\d{5}|e-?mail|@|orcid|correspond|received|"
    r"accepted|published|revised|available online|copyright|©|\bdoi\b|大学|研究",
    re.IGNORECASE,
)
_ABSTRACT = re.compile(
    r"^\W*(?:abstract|summary|a b s t r a c t|zusammenfassung|résumé|摘\s*要)\b", re.IGNORECASE
)
_OPENING = re.compile(r"^\W*(?:\d+\.?\s*)?introduction\b", re.IGNORECASE)
_CAPTION = re.compile(
    r"^\W*(?:fig(?:ure)?|table|scheme|chart|plate|abb(?:ildung)?|tab|图|表)\.?\s*\d", re.IGNORECASE
)
_CONTENTS = {
    "contents", "table of contents", "list of figures", "list of tables", "inhalt", "inhaltsverzeichnis",
    "table des matières", "sommaire", "índice", "目录", "目次",
}  # fmt: skip
_TO_A_PAGE = re.compile(r"^.{2,120}?\s\|?\s*(?:\d{1,4}|[ivxl]+)[\s|]*$")
_LEADERS = re.compile(r"(?:\.\s?){4,}\s*[\divxlc]+\s*$|\t\s*\d+\s*$", re.IGNORECASE | re.MULTILINE)
_PAGE_NUMBER = re.compile(
    r"^\W*(?:page\s+)?(?:\d{1,4}|[ivxl]{1,6})(?:\s*(?:of|/)\s*\d{1,4})?\W*$", re.IGNORECASE
)
MOST_THANKS = 400  # words of one statement
REPEATS = 3  # of one line, before all but the first go

Rule = Callable[[list[Block]], Iterable[int]]


def clean(document: Document, keep: frozenset[str] = frozenset()) -> Clean:
    """Say of each block by which rule it is cut, if by one.

    Args:
        document: as it was read.
        keep: the rules that are turned off.
    """
    blocks = list(document.blocks)
    found = [""] * len(blocks)
    for name, rule in _RULES.items():
        if name in keep:
            continue
        here = [i for i, by in enumerate(found) if not by]
        for place in rule([blocks[i] for i in here]):
            found[here[place]] = name
    for i, block in enumerate(blocks):  # a heading over nothing that stays goes with what it stood over
        if not found[i] and block.kind == "heading" and (by := _emptied(blocks, found, i)):
            found[i] = by
    return Clean(document, tuple(found))


def _emptied(blocks: list[Block], found: list[str], place: int) -> str:
    """Name the rule that cut the list below a heading; none: something stays, or no list stood there."""
    rules: set[str] = set()
    for block, by in zip(blocks[place + 1 :], found[place + 1 :], strict=True):
        if block.kind == "heading" and not by and block.level <= blocks[place].level:
            break
        if block.kind == "furniture" or by in ("furniture", "images"):
            continue
        if not by:
            return ""
        rules.add(by)
    return rules.pop() if len(rules) == 1 and rules <= {"references", "contents"} else ""


def _furniture(blocks: list[Block]) -> Iterable[int]:
    """Cut heads and feet, and numbers that stand first or last on a page."""
    for i, block in enumerate(blocks):
        around = {blocks[k].page if 0 <= k < len(blocks) else 0 for k in (i - 1, i + 1)}
        edge = bool(block.page) and around != {block.page}
        if block.kind == "furniture" or (edge and block.kind == "text" and _PAGE_NUMBER.match(block.text)):
            yield i


def _images(blocks: list[Block]) -> Iterable[int]:
    """Cut images, and what stands beside them that is no caption: letters of parts, units of axes."""
    for i, block in enumerate(blocks):
        near = block.note == "caption" or any(
            blocks[k].kind == "image" for k in (i - 1, i + 1) if 0 <= k < len(blocks)
        )
        label = (
            block.kind == "text" and near and len(_bare(block.text)) <= 30 and not _CAPTION.match(block.text)
        )
        if block.kind == "image" or (label and not re.search(r"[.!?:]$", block.text)):
            yield i


def _contents(blocks: list[Block]) -> Iterable[int]:
    """Cut lines of dots to a page's number, and below a heading of that name lines that end with one."""
    above: int | None = None  # the heading, while all that follows is of the table
    for i, block in enumerate(blocks):
        lines = block.text.split("\n")
        leaders = _LEADERS.findall(block.text.replace(" |\n", "\n").removesuffix(" |"))
        dotted = block.kind in ("text", "list", "table") and 2 * len(leaders) > len(lines)
        listed = above is not None and all(_TO_A_PAGE.search(line) for line in lines)
        if block.kind in ("heading", "text") and named(block.text) in _CONTENTS:
            above = i
        elif dotted or listed:
            yield from (i,) if above is None else (above, i)
        elif block.kind != "furniture":
            above = None


def _repeated(blocks: list[Block]) -> Iterable[int]:
    """Cut short lines that stand in many places; the first one stays.

    Where there are pages, lines on several of them count as one, whatever page they say that they are on.
    """
    forms = [_form(block) for block in blocks]
    often = Counter(forms)
    pages: dict[str, list[int]] = {}  # of lines that are alike but for their numbers
    for form, block in zip(forms, blocks, strict=True):
        pages.setdefault(re.sub(r"\d+", "#", form), []).append(block.page)
    seen = set()
    for i, form in enumerate(forms):
        on = pages[re.sub(r"\d+", "#", form)]
        spread = not blocks[i].page or len(set(on)) > 0.8 * len(on)
        if form and often[form] > REPEATS and spread:
            if form in seen:
                yield i
            seen.add(form)


def _form(block: Block) -> str:
    short = block.kind == "text" and len(block.text) <= 200 and "\n" not in block.text
    text = " ".join(block.text.lower().split()) if short else ""
    return re.sub(r"\d+", lambda found: "#" if int(found[0]) == block.page else found[0], text)


def _authors(blocks: list[Block]) -> Iterable[int]:
    """Cut names and places between a paper's title and its abstract, or its introduction."""
    end = next((i for i, b in enumerate(blocks[:25]) if _ABSTRACT.match(b.text)), None)
    if end is None:
        end = next(
            (i for i, b in enumerate(blocks[:25]) if b.kind == "heading" and _OPENING.match(b.text)), None
        )
    if end is None:
        return
    title = next((i for i, block in enumerate(blocks[:end]) if block.kind == "heading"), 0)
    for i in range(title + 1, end):
        block = blocks[i]
        if block.kind not in ("text", "list") or block.words > 120:
            continue
        if (
            _NAMES.match(block.text)
            or (_PLACE.search(block.text) and not _prose(block.text))
            or (block.words <= 12 and not re.search(r"[.!?]$", block.text))
        ):
            yield i


def _prose(text: str) -> bool:
    """Say whether a text is sentences of some length: three in four of its words are in lower case."""
    words = re.findall(r"[^\W\d_]+", text)
    lower = sum(word.islower() for word in words)
    return len(words) > 30 and lower > 0.75 * len(words)


def _statements(blocks: list[Block]) -> Iterable[int]:
    """Cut thanks, funding and such in the later part: a section of that name that does so, or a paragraph."""
    for i, block in enumerate(blocks):
        if 2 * i < len(blocks) and len(blocks) > 8:
            continue
        if block.kind == "heading" and named(block.text) in _THANKS:
            section = list(_section(blocks, i))
            texts = [blocks[k].text for k in section]
            if sum(len(text.split()) for text in texts) <= MOST_THANKS and _THANKING.search(" ".join(texts)):
                yield from (i, *section)
        short = block.kind == "text" and block.words <= MOST_THANKS and _THANKING.search(block.text)
        if short and (run_in := _RUN_IN.match(block.text)) and named(run_in["name"]) in _THANKS:
            yield i


def _section(blocks: list[Block], place: int) -> Iterable[int]:
    """Give the places of what stands under a heading, to the next one or to what belongs to a page alone."""
    for i in range(place + 1, len(blocks)):
        if blocks[i].kind in ("heading", "image", "table") or blocks[i].note == "caption":
            return
        yield i


def _bare(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[$\\{}<>]|mathrm", "", text)).strip()


_RULES: dict[str, Rule] = {
    "furniture": _furniture, "images": _images, "contents": _contents, "references": references,
    "acknowledgements": _statements, "authors": _authors, "repeated": _repeated,
}  # fmt: skip

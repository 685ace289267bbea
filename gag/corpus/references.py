"""Find lists of references: what a parser named so, what looks so below such a heading, or at the end."""

import re
from collections.abc import Iterable

from gag.corpus.documents import Block

_NUMBERED = re.compile(
    r"^\W*(?:(?:section|chapter|appendix)\s+)?(?:[\dIVXA-Z]{1,4}(?:\.\d+)*[.):]?\s+)?", re.IGNORECASE
)
_REFERENCES = {
    "references", "reference", "bibliography", "literature cited", "literature", "works cited",
    "cited literature", "references and notes", "notes and references", "cited references", "reference list",
    "list of references",
    "literatur", "literaturverzeichnis", "références", "bibliographie", "referencias", "bibliografía",
    "参考文献", "参考资料",
}  # fmt: skip
_ENTRY = re.compile(
    r"\b(?:19|20)\d\d[a-z]?\b|\bet al\b|\bdoi\b|10\.\d{4,}/|\barxiv\b|\bpp?\.\s*\d|\bvol\.|"
    r"\bin press\b|https?://",
    re.IGNORECASE,
)
_CITED = re.compile(  # what prose that names a year has not: initials, numbers of a volume and its pages
    r"\b[A-Z]\.(?:[\s,]|-?[A-Z]\.)|\b[A-Z]\w+,? [A-Z]{1,3}[,.]|\bet al\b|\bdoi\b|10\.\d{4,}/|\barxiv\b|"
    r"https?://|"
    r"\bpp?\.\s*\d|\bvol\.|\bin press\b|\d+\s*\(\d+\)\s*[,:]|\d\s*[,:;]\s*\d+\s*[-–—]\s*\d|\d;\s*\d+:\d"
)
_NUMBER = re.compile(
    r"^\s*(?:[-*+]\s+)?(?:\[[\w+-]{1,12}\]|\(?\d{1,3}[.)\]])\s*\S|^\s*(?:[-*+]\s+)?\S.*\(\d{4}[a-z]?\)"
)


def references(blocks: list[Block]) -> Iterable[int]:
    """Cut lists of references: what a parser named so, and what looks so below such a heading."""
    for i, block in enumerate(blocks):
        if block.note == "ref_text":
            yield i
        if block.kind in ("heading", "text") and block.words <= 5 and named(block.text) in _REFERENCES:
            entries = list(_entries(blocks, i))
            if entries and 2 * sum(bool(_CITED.search(blocks[k].text)) for k in entries) >= len(entries):
                yield from (i, *entries)
    yield from _headless(blocks)


def _entries(blocks: list[Block], place: int) -> Iterable[int]:
    """Give the places of the entries below a heading; they end where two blocks in a row look otherwise."""
    found: list[int] = []
    misses: list[int] = []
    for i in range(place + 1, len(blocks)):
        block = blocks[i]
        entry = block.kind == "table" and block.words < 80 and _is_entries(block)
        if (
            block.kind in ("heading", "image")
            or block.note == "caption"
            or (block.kind == "table" and not entry)
        ):
            break
        if _is_entries(block) or _are_joined(block):
            found += [*misses, i]
            misses = []
        elif block.kind != "furniture":
            misses.append(i)
            if len(misses) > 1:
                break
    return found


def _is_entries(block: Block) -> bool:
    """Say whether a block is entries of a list of references: most of its lines or items have their marks."""
    if block.note == "ref_text":
        return True
    parts = re.split(r"\n(?=\s*(?:[-*+]|\[|\(?\d{1,3}[.)\]]))|\n\s*\n", block.text)
    items = [part for part in parts if part.strip()]
    good = sum(bool(_ENTRY.search(item)) and len(item.split()) < 120 for item in items)
    return 3 * good >= 2 * len(items)


def _are_joined(block: Block) -> bool:
    """Say whether a block is entries that nothing parts."""
    marks = len(_ENTRY.findall(block.text))
    return marks > 2 and 40 * marks > block.words


def _headless(blocks: list[Block]) -> Iterable[int]:
    """Cut a run of entries in the last third that no heading stands over: five or more, each numbered."""
    start = len(blocks) - len(blocks) // 3
    run: list[int] = []
    for i in range(len(blocks) + 1):
        block = blocks[i] if i < len(blocks) else None
        if block and block.kind in ("text", "list") and _is_entries(block) and _NUMBER.match(block.text):
            run.append(i)
            continue
        if block and block.kind == "furniture":
            continue
        lines = sum(blocks[k].text.count("\n") + 1 for k in run)
        cited = sum(bool(_CITED.search(blocks[k].text)) for k in run)
        late = bool(run) and run[-1] >= start and 3 * cited >= 2 * len(run)
        if late and (len(run) >= 5 or (lines >= 5 and any(blocks[k].kind == "list" for k in run))):
            yield from run
        run = []


def named(heading: str) -> str:
    """Return a heading's words alone, without its number."""
    bare = _NUMBERED.sub("", heading.strip("#*_ \t"), count=1) if not heading.isupper() else heading
    bare = re.sub(r"^\W*\d+(?:\.\d+)*[.):]?\s+", "", bare)
    return " ".join(re.sub(r"[^\w\s'’]", " ", bare).replace("’", "'").lower().split())

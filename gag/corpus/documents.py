"""A document as blocks: headings, paragraphs, tables, each with its page; and what becomes of each."""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["heading", "text", "list", "table", "formula", "code", "image", "furniture"]
Fault = tuple[str, str]  # a source, and why it was set aside


@dataclass(frozen=True)
class Block:
    """A piece of a document that no rule cuts in two.

    Attributes:
        kind: what it is; furniture is what stands on the page and belongs to no text: headers, numbers.
        text: in Markdown.
        level: of a heading, 1 for the highest.
        page: on which it begins, from 1; 0: the document has no pages.
        note: what its parser called it, where that says more than the kind (ref_text, caption).
    """

    kind: Kind
    text: str
    level: int = 0
    page: int = 0
    note: str = ""

    @property
    def words(self) -> int:
        """How many words it has."""
        return len(self.text.split())


@dataclass(frozen=True)
class Document:
    """What was read of a file, or of one row of it.

    Attributes:
        source: where it is from: the file below the folder that was named, and the row in it.
        title: its title, or its file's name.
        blocks: in reading order.
        pages: how many it has; 0: it has none.
    """

    source: str
    title: str
    blocks: tuple[Block, ...]
    pages: int = 0


@dataclass(frozen=True)
class Clean:
    """A document's blocks, in order: those that stay, and those that a rule cut.

    Attributes:
        document: as it was read.
        rules: by which rule each of its blocks was cut; none: it stays.
    """

    document: Document
    rules: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> list[Block]:
        """The blocks that stay."""
        return [block for block, rule in self.pairs if not rule]

    @property
    def pairs(self) -> list[tuple[Block, str]]:
        """Each block with the rule that cut it, if one did."""
        return list(zip(self.document.blocks, self.rules, strict=True))


def title_of(blocks: list[Block], otherwise: str) -> str:
    """Return the first heading of the highest level among the first blocks, or another name."""
    early = [block for block in blocks[:20] if block.kind == "heading"]
    if not early:
        return otherwise
    return min(early, key=lambda block: block.level).text.lstrip("#").strip() or otherwise

"""Read Markdown, plain text and HTML into blocks, each with its text as it stood."""

import re
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from gag.corpus.documents import Block, Kind

IMAGE = re.compile(r"!\[[^\]]*\]\([^)\s]*(?:\s+\"[^\"]*\")?\)|<img\b[^>]*>", re.IGNORECASE)
_FORMULA = re.compile(r"\s*(\$\$.*\$\$|\\\[.*\\\])\s*", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_TITLE = re.compile(r"^title:[^\S\n]*[\"']?(.*?)[\"']?[^\S\n]*$", re.MULTILINE | re.IGNORECASE)
_COMMENT = re.compile(r"(`+[^`]+`+)|<!--.*?-->", re.DOTALL)
_KINDS: dict[str, Kind] = {
    "bullet_list_open": "list", "ordered_list_open": "list", "table_open": "table", "fence": "code",
    "code_block": "code", "blockquote_open": "text", "paragraph_open": "text",
}  # fmt: skip


def front_title(text: str) -> str:
    """Return the title that Markdown's front matter names."""
    front = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    title = _TITLE.search(front[1]) if front else None
    return title[1].strip() if title and title[1][:1] not in ">|" else ""


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def markdown_blocks(text: str) -> list[Block]:
    """Take Markdown apart into blocks; each keeps its text as it stood, formulas and tables too."""
    text = _FRONT_MATTER.sub("", text.replace("\r\n", "\n").replace("\r", "\n"), count=1)
    lines = text.split("\n")
    blocks: list[Block] = []
    for token in _parser().parse(text):
        if token.level or token.map is None or token.nesting < 0:
            continue
        blocks += _blocks(token, "\n".join(lines[slice(*token.map)]).strip("\n"))
    return blocks


def _blocks(token: Token, text: str) -> list[Block]:
    if token.type == "heading_open":
        title = re.sub(r"^\s*#+\s*|\s+#+\s*$|\n[=-]+\s*$", "", text).strip()
        return [Block("heading", title, level=int(token.tag[1]))] if title else []
    if token.type not in ("fence", "code_block"):
        text = _COMMENT.sub(lambda found: found[1] or "", text).strip("\n")
    if token.type == "html_block":
        kind = "table" if "<table" in text.lower() else "image" if IMAGE.fullmatch(text.strip()) else "text"
        return [Block(kind, text)] if text.strip() else []
    if token.type == "paragraph_open":
        return _paragraph(text)
    return [Block(_KINDS[token.type], text)] if token.type in _KINDS and text.strip() else []


def _paragraph(text: str) -> list[Block]:
    """Part images from the lines beside them, which are their captions."""
    if _FORMULA.fullmatch(text):
        return [Block("formula", text.strip())]
    if not IMAGE.search(text):
        return [Block("text", text.strip())] if text.strip() else []
    blocks, rest = [], IMAGE.sub("", text)
    blocks += [Block("image", found.group()) for found in IMAGE.finditer(text)]
    if len(rest.split()) > 60:  # an image inside a paragraph
        return [Block("text", rest.strip())]
    return blocks + [Block("text", line.strip(), note="caption") for line in rest.split("\n") if line.strip()]


def text_blocks(text: str) -> list[Block]:
    """Cut plain text at its blank lines."""
    pieces = re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n").replace("\r", "\n"))
    return [Block("text", piece.strip("\n ")) for piece in pieces if piece.strip()]


def html_markdown(page: str) -> tuple[str, str]:
    """Find the text of an HTML page, without its menus -> Markdown, and the page's title."""
    from lxml import html
    from trafilatura import extract

    found = extract(
        page, output_format="markdown", include_tables=True, include_formatting=True, include_comments=False,
        favor_recall=True, deduplicate=False,
    )  # fmt: skip
    try:
        tree = html.fromstring(page.encode("utf-8", "replace"), parser=html.HTMLParser(encoding="utf-8"))
    except (ValueError, html.etree.ParserError):  # nothing in it
        return found or "", ""
    title = " ".join((tree.findtext(".//title") or "").split())
    if not found:  # too little for its rules: all text that is shown
        for gone in tree.xpath("//script|//style|//noscript|//head"):
            gone.drop_tree()
        found = "\n\n".join(" ".join(part.split()) for part in tree.itertext() if part.strip())
    return found, title

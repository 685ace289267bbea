"""Read what MinerU writes for a PDF: a list of its contents, or since version 4 its structured content.

Both hold the same blocks; the newer form, which has pages of them, is brought into the older one.
"""

import json
import re
from pathlib import Path
from typing import Any

from gag.corpus.documents import Block
from gag.errors import DataError

CONTENTS, STRUCTURED = "_content_list.json", "structured_content.json"
_FURNITURE = {
    "header",
    "footer",
    "page_number",
    "aside_text",
    "page_footnote",
    "page_aside_text",
    "discarded",
}
_NOTES = ("caption", "footnote")
_OPEN = re.compile(r"[\w,;)\]%-]$")  # how a text ends that goes on


def is_contents(path: Path) -> bool:
    """Say whether a file is MinerU's list of contents, or its structured content."""
    return path.name.endswith((CONTENTS, STRUCTURED))


def beside(path: Path) -> list[Path]:
    """Name the files that hold the same document as a list of contents: they are not read again."""
    if path.name.endswith(STRUCTURED):
        stem = path.name.removesuffix(STRUCTURED)
        others = ("markdown.md", "middle_json.json", "model_output.json")
        return [path.with_name(stem + name) for name in others]
    stem = path.name.removesuffix(CONTENTS)
    others = (".md", "_origin.pdf", "_layout.pdf", "_span.pdf", "_model.json", "_middle.json")
    return [path.with_name(stem + end) for end in (*others, "_content_list_v2.json")]


def content_blocks(text: str, name: str) -> list[Block]:
    """Take a list of contents apart into blocks; a paragraph that a page's end parted is joined.

    Raises:
        DataError: it is no such list.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no whole JSON") from error
    if isinstance(items, dict) and isinstance(items.get("pages"), list):
        try:
            items = [_older(block, page) for page in items["pages"] for block in page["blocks"]]
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{name} is no structured content as MinerU writes it") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) and "type" in item for item in items):
        raise DataError(f"{name} is no list of contents as MinerU writes it")
    blocks: list[Block] = []
    for item in items:
        for block in _blocks(item):
            _append(blocks, block)
    return blocks


def _older(block: dict[str, Any], page: dict[str, Any]) -> dict[str, Any]:
    """Bring a block of structured content into the form of a list of contents."""
    kind, text = str(block["type"]), _text(block.get("content"))
    item: dict[str, Any] = {"type": kind, "text": text, "page_idx": page["page_idx"]}
    if kind in ("doc_title", "paragraph_title"):
        return item | {"type": "text", "text_level": block.get("level") or 1}
    if kind in ("list", "index", "ref_text"):
        listed = {"list_items": text.splitlines(), "sub_type": block.get("sub_type") or kind}
        return item | {"type": "list"} | listed
    body = {f"{kind}_body": text, "img_path": block.get("image_source")}
    notes = {f"{kind}_{part}": [one.get("content") for one in block.get(f"{part}s") or []] for part in _NOTES}
    return item | body | notes


def _blocks(item: dict[str, Any]) -> list[Block]:
    kind, page = str(item["type"]), int(item.get("page_idx") or 0) + 1
    text = _text(item.get("text"))
    if kind in _FURNITURE:
        return [Block("furniture", text, page=page, note=kind)] if text else []
    if kind == "text":
        level = item.get("text_level")
        if level:
            return [Block("heading", text, level=int(level), page=page)] if text else []
        return [Block("text", text, page=page)] if text else []
    if kind == "list":
        joined = "\n".join(_text(one) for one in item.get("list_items") or [])
        return [Block("list", joined, page=page, note=str(item.get("sub_type") or ""))] if joined else []
    if kind in ("equation", "interline_equation"):
        return [Block("formula", text, page=page)] if text else []
    if kind in ("code", "algorithm"):
        body = _text(item.get("code_body")) or text
        return [*_captions(item, kind, page), *([Block("code", body, page=page)] if body else [])]
    if kind in ("table", "chart"):
        body = _text(item.get(f"{kind}_body"))
        table = [Block("table", body, page=page)] if body else []
        return [*_captions(item, kind, page), *table, *_captions(item, kind, page, "footnote")]
    if kind == "image":
        image = Block("image", f"![]({_text(item.get('img_path'))})", page=page)
        return [image, *_captions(item, kind, page), *_captions(item, kind, page, "footnote")]
    return [Block("text", text, page=page, note=kind)] if text else []


def _captions(item: dict[str, Any], kind: str, page: int, part: str = "caption") -> list[Block]:
    found = item.get(f"{kind}_{part}") or []
    found = [found] if isinstance(found, str) else found
    return [Block("text", text, page=page, note="caption") for one in found if (text := _text(one))]


def _append(blocks: list[Block], block: Block) -> None:
    """Add a block; a text whose sentence a page's end broke goes on in the one before."""
    place = next((i for i in range(len(blocks) - 1, -1, -1) if blocks[i].kind != "furniture"), None)
    if place is not None and _goes_on(blocks[place], block):
        last = blocks[place]
        blocks[place] = Block(last.kind, f"{last.text} {block.text}", last.level, last.page, last.note)
    else:
        blocks.append(block)


def _goes_on(last: Block, block: Block) -> bool:
    texts = last.kind == block.kind == "text" and not (last.note or block.note)
    begins = block.text[:1].islower() or block.text.startswith("$")
    return texts and block.page == last.page + 1 and begins and bool(_OPEN.search(last.text))


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""

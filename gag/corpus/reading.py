"""Find the documents under what was named, and read each with the reader of its kind."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gag.corpus.documents import Document, Fault, title_of
from gag.corpus.markdown import front_title, html_markdown, markdown_blocks, text_blocks
from gag.corpus.mineru import STRUCTURED, beside, content_blocks, is_contents
from gag.corpus.tabular import LONGEST, read_table
from gag.errors import DataError

MARKDOWN, PLAIN, HTML = {".md", ".markdown"}, {".txt", ".text", ".rst"}, {".html", ".htm", ".xhtml"}
TABLES = {".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}
FOUND, REPORT = ".documents.jsonl", ".report.json"  # beside a corpus: what was found in files, and of all
_MARK = re.compile(rb'{"name": .*"sha256": "[0-9a-f]*", "key": \[')  # how a line of it begins
KINDS = MARKDOWN | PLAIN | HTML | TABLES | {".pdf"}


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        path: where it is.
        name: how it is named: its path below the folder that was given.
        contents: what another program made of it, to be read in its place.
        fault: why that program could not.
    """

    path: Path
    name: str
    contents: Path | None = None
    fault: str = ""


def find_sources(inputs: list[Path]) -> tuple[list[Source], dict[str, int]]:
    """Find the files under files and folders -> those with a reader, and how many others by their ending.

    What MinerU writes for one document counts once: its list of contents. Corpora that lie in a folder beside
    the documents they were made of are no documents.

    Raises:
        DataError: an input is not there, or two files have the same name below what was given.
    """
    found: dict[str, Source] = {}
    others: dict[str, int] = {}
    seen: set[Path] = set()
    for given in inputs:
        if not given.exists():
            raise DataError(f"{given} is not there; name files or folders of documents")
        paths = [given] if given.is_file() else sorted(path for path in given.rglob("*") if path.is_file())
        twice = {other for path in paths if is_contents(path) for other in beside(path)}
        twice |= {other for path in paths if path != given for other in _made(path)}
        for path in paths:
            name = path.name if path == given else path.relative_to(given).as_posix()
            name = os.fsencode(name).decode("utf-8", "replace")
            if path in twice or any(part.startswith(".") for part in Path(name).parts):
                continue
            if path.suffix.lower() not in KINDS and not is_contents(path):
                others[path.suffix.lower() or path.name] = others.get(path.suffix.lower() or path.name, 0) + 1
                continue
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            name = f"{given.name}/{name}" if name in found else name
            if name in found:
                raise DataError(f"two files are named {name}; name the folder above both")
            found[name] = Source(path, name)
    return list(found.values()), others


def _made(path: Path) -> list[Path]:
    """Name what a run wrote, by one of its files: the corpus, what it found in each file, and its report."""
    if not path.name.endswith(FOUND):
        return []
    with path.open("rb") as file:
        if not _MARK.match(file.read(4096)):
            return []
    name = path.name.removesuffix(FOUND)
    return [path.with_name(name + ending) for ending in (".jsonl", FOUND, REPORT)]


def read_source(source: Source) -> Iterator[Document | Fault]:
    """Yield the documents of a file, and what of it is none, with the reason; OSError: it cannot be read."""
    try:
        if source.path.suffix.lower() in TABLES:
            yield from read_table(source.path, source.name)
        else:
            yield _read_one(source)
    except DataError as error:
        yield source.name, str(error)


def _read_one(source: Source) -> Document:
    if source.fault:
        raise DataError(source.fault)
    path = source.contents or source.path
    kind, name = path.suffix.lower(), Path(source.name).stem  # of which every letter can be written
    if path.name == STRUCTURED:  # which is named by its folder
        name = path.parent.name
    if kind == ".pdf":
        from gag.corpus.pdf import pdf_blocks

        blocks, pages = pdf_blocks(path)
        return Document(source.name, title_of(blocks, name), tuple(blocks), pages)
    text = _text(path)
    if is_contents(path):
        blocks = content_blocks(text, source.name)
        pages = max((block.page for block in blocks), default=0)
        if not any(block.text.strip() for block in blocks):
            raise DataError("it has no text: its pages are pictures; have MinerU read them by a higher tier")
        return Document(source.name, title_of(blocks, name), tuple(blocks), pages)
    title = ""
    if kind in HTML:
        text, title = html_markdown(text)
    elif kind in MARKDOWN:
        title = front_title(text)
    blocks = text_blocks(text) if kind in PLAIN else markdown_blocks(text)
    if not any(block.text.strip() for block in blocks):
        raise DataError("it is empty: it has no text")
    return Document(source.name, title or title_of(blocks, name), tuple(blocks))


def _text(path: Path) -> str:
    """Read a file of text, in UTF-8 or as its first bytes say."""
    size = path.stat().st_size
    if size > 4 * LONGEST:
        raise DataError(
            f"it has {size / 1e6:.0f} MB, and one document has {LONGEST / 1e6:.0f} at most; part it"
        )
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\x00" in raw[:4096]:
            raise DataError("it is no text, whatever its name says") from error
        text = raw.decode("cp1252", "replace")  # what most that is not UTF-8 is
        if text.count("\ufffd") > len(text) // 100:
            raise DataError("it is no text in a known encoding; save it as UTF-8") from error
    if "\x00" in text:
        raise DataError("it is no text, whatever its name says")
    if len(text) > LONGEST:
        raise DataError(f"it has {len(text):,} characters, and one document has {LONGEST:,} at most; part it")
    return text

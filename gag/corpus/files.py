"""What each file gives: its documents, cleaned and cut, from several processes where that is worth it."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from gag.corpus.cleaning import clean
from gag.corpus.documents import Document
from gag.corpus.passages import Excerpt, Splitter, cut, language_of
from gag.corpus.reading import Source, read_source
from gag.errors import is_full_disk, is_full_memory

VERSION = 4  # of what a file's line says: with another one all is read again
ALONE = 4_000_000  # bytes; less is read in this process


@dataclass(frozen=True)
class Cutting:
    """How documents become passages.

    Attributes:
        tokens: of one passage, at most.
        least: tokens of one that is kept.
        keep: rules of cleaning that are turned off.
        languages: those that are kept, as ISO 639-1; none: all.
        mask: whether e-mail addresses and phone numbers are written over.
        counted_by: the model whose tokens they are; none: four characters count as a token.
        parser: what reads PDFs (`parsers.check_parser`).
    """

    tokens: int = 480
    least: int = 8
    keep: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()
    mask: bool = False
    counted_by: str = ""
    parser: str = "pypdfium2"

    @property
    def key(self) -> list[Any]:
        """Name all that a file's passages depend on."""
        return [VERSION, self.tokens, sorted(self.keep), self.mask, self.counted_by, self.parser]


@dataclass(frozen=True)
class Found:
    """What a document gave.

    Attributes:
        source: its name.
        title: its title.
        pages: how many it has.
        language: as ISO 639-1.
        headings: those that stay.
        cut: words that each rule took out.
        passages: what it was cut into.
    """

    source: str
    title: str
    pages: int
    language: str
    headings: list[str]
    cut: dict[str, int]
    passages: list[Excerpt]


@dataclass(frozen=True)
class FileFound:
    """What a file gave: its documents, and what of it is none.

    Where the reason lies not in the file (`passing`), it is read again next time.
    """

    documents: list[Found]
    set_aside: list[tuple[str, str]]
    passing: bool = False


def read_files(
    fresh: list[Source], cutting: Cutting, tokenizer: str | None
) -> Iterator[tuple[Source, FileFound]]:
    """Yield what each file gave, from several processes where that is worth their start."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(allowed, len(fresh))
    if processes < 2 or sum(source.path.stat().st_size for source in fresh) < ALONE:
        reader = FileReader(cutting, tokenizer)
        yield from ((source, reader.read(source)) for source in fresh)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (cutting, tokenizer)) as pool:
        size = max(1, min(16, len(fresh) // (4 * processes)))
        yield from zip(fresh, pool.map(_read, fresh, chunksize=size), strict=True)


class FileReader:
    """Reads files in one process; its tokenizer is loaded once."""

    def __init__(self, cutting: Cutting, tokenizer: str | None):
        self._cutting, self._language = cutting, language_of()
        self._splitter = Splitter(Tokenizer.from_str(tokenizer) if tokenizer else None, cutting.tokens)

    def read(self, source: Source) -> FileFound:
        """Read a file, clean its documents and cut them; one that cannot be read is set aside by name."""
        documents, aside, passing = [], [], bool(source.fault)  # of another program, which may do it later
        try:
            for document in read_source(source):
                if isinstance(document, Document):
                    documents.append(self._found(document))
                else:
                    aside.append(document)
        except Exception as error:
            if is_full_disk(error) or is_full_memory(error):
                raise
            passing, said = True, " ".join(str(error).split())[:120]  # it is named, and the others are read
            aside.append((source.name, f"its reader failed on it ({type(error).__name__}: {said})"))
        return FileFound(documents, aside, passing)

    def _found(self, document: Document) -> Found:
        cleaned = clean(document, self._cutting.keep)
        cuts = Counter[str]()
        for block, rule in cleaned.pairs:
            if rule:
                cuts[rule] += block.words
        kept = cleaned.kept
        language = self._language(" ".join(block.text for block in kept if block.kind != "table")[:8000])
        headings = [block.text for block in kept if block.kind == "heading"]
        passages = cut(cleaned, self._splitter, language, self._cutting.mask)
        return Found(
            document.source, document.title, document.pages, language, headings, dict(cuts), passages
        )


_reader: list[FileReader] = []  # of a process that reads for another one


def _begin(cutting: Cutting, tokenizer: str | None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _reader.append(FileReader(cutting, tokenizer))


def _read(source: Source) -> FileFound:
    return _reader[0].read(source)


def found_of(line: str) -> FileFound:
    """Read what a line says that a file gave."""
    told = json.loads(line.partition("\t")[2])
    documents = [
        Found(**one | {"passages": [_excerpt(row) for row in one["passages"]]}) for one in told["documents"]
    ]
    return FileFound(documents, [(name, reason) for name, reason in told["set_aside"]])


def _excerpt(row: dict[str, Any]) -> Excerpt:
    row["pages"], row["personal"] = tuple(row["pages"]), tuple(row["personal"])
    return Excerpt(**row)

"""From files to corpus.jsonl: what changed is read, cleaned and cut, in parallel; all of it is compared.

Beside the corpus lies what was found in each file, a line each as soon as it is done: a run that is broken
off goes on from there, and the next one reads only what changed.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gag.corpus.duplicates import near_duplicates
from gag.corpus.files import Cutting, FileFound, Found, found_of, read_files
from gag.corpus.parsers import batches, parsed
from gag.corpus.passages import Excerpt, is_headings
from gag.corpus.reading import FOUND, REPORT, Source, find_sources
from gag.errors import DataError
from gag.project.artifacts import replacing, write_json
from gag.project.progress import bar
from gag.project.rows import appending, digest


@dataclass(frozen=True)
class CorpusReport:
    """What a run found.

    Attributes:
        files: that were read, now or before.
        read: of these, now.
        documents: in them.
        passages: in the corpus.
        tokens: in those.
        set_aside: files and rows that are no documents, each with its reason.
        unread: files without a reader, by their ending.
        cut: words that each rule of cleaning took out.
        dropped: passages that were left out, by the reason.
        personal: passages that tell of people, by what they tell.
        languages: documents of each.
        found: each document's title, headings and cuts.
        seconds: that it took.
    """

    files: int
    read: int
    documents: int
    passages: int
    tokens: int
    set_aside: list[tuple[str, str]]
    unread: dict[str, int]
    cut: dict[str, int]
    dropped: dict[str, int]
    personal: dict[str, int]
    languages: dict[str, int]
    found: list[dict[str, Any]]
    seconds: float


def build_corpus(
    inputs: Sequence[Path | str],
    out: Path | str,
    cutting: Cutting,
    tokenizer: Callable[[], str | None] = lambda: None,
) -> CorpusReport:
    """Read files and folders of documents, clean them, cut them into passages, and write those.

    Args:
        inputs: files and folders.
        out: the corpus, as JSONL.
        cutting: how documents become passages.
        tokenizer: loads what counts their tokens, in its own JSON; it is called where something is read.

    Raises:
        DataError: nothing under the inputs is a document, or something else stands at `out`.
    """
    started = time.monotonic()
    sources, unread = find_sources([Path(given) for given in inputs])
    out = Path(out)
    _claim(out, sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    state = out.with_suffix(FOUND)
    key = cutting.key
    before = _known(state, key)
    lines, fresh = _taken_over(sources, before)
    told, wanted = out.with_suffix(REPORT), [key, cutting.least, sorted(cutting.languages)]
    if not fresh and before.keys() == lines.keys() and (report := _still(told, wanted, out)):
        return replace(report, read=0, seconds=round(time.monotonic() - started, 2))
    if fresh:
        _read_all(fresh, cutting, tokenizer(), state, lines)
    files = [found_of(lines[source.name]) for source in sources]
    documents = [document for file in files for document in file.documents]
    aside = [fault for file in files for fault in file.set_aside]
    if not documents:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in aside[:3]) or "there are none"
        raise DataError(f"no document was found ({reasons})")
    if fresh or len(before) > len(sources):
        with replacing(state) as path, path.open("w", encoding="utf-8") as file:
            file.writelines(lines[source.name] for source in sources)
    del before, lines
    passages, dropped = _kept(documents, cutting)
    _write(out, passages)
    cuts, personal = Counter[str](), Counter[str]()
    for document in documents:
        cuts.update(document.cut)
    for passage in passages:
        personal.update(passage.personal)
    report = CorpusReport(
        files=len(sources),
        read=len(fresh),
        documents=len(documents),
        passages=len(passages),
        tokens=sum(passage.tokens for passage in passages),
        set_aside=aside,
        unread=unread,
        cut=dict(cuts),
        dropped=dropped,
        personal=dict(personal),
        languages=dict(Counter(document.language for document in documents)),
        found=[
            {"source": d.source, "title": d.title, "pages": d.pages, "headings": d.headings, "cut": d.cut}
            for d in documents
        ],
        seconds=round(time.monotonic() - started, 2),
    )
    write_json(told, {"made_by": wanted, "sha256": digest(out), "report": asdict(report)})
    return report


def _claim(out: Path, sources: list[Source]) -> None:
    """Refuse to write over a document, or over a file that no run wrote."""
    if out.is_dir() or not out.suffix:
        raise DataError(f"{out or '--out'} is no file's name; name one, such as corpus.jsonl")
    if out.exists() and any(source.path.samefile(out) for source in sources):
        raise DataError(f"{out} is one of the documents; name another --out")
    if out.exists() and not out.with_suffix(FOUND).exists():
        raise DataError(f"{out} is there, and no run of this wrote it; name another --out")


def _still(told: Path, wanted: list[Any], out: Path) -> CorpusReport | None:
    """Return the last run's report, if it was of the same and the corpus is as it left it."""
    if not (told.is_file() and out.is_file()):
        return None
    try:
        found = json.loads(told.read_text(encoding="utf-8"))
        if found["made_by"] != wanted or found["sha256"] != digest(out):
            return None
        aside = [(name, reason) for name, reason in found["report"]["set_aside"]]
        return CorpusReport(**found["report"] | {"set_aside": aside})
    except (ValueError, LookupError, TypeError):  # somebody damaged it: it is made again
        return None


def _known(state: Path, key: list[Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Return what earlier runs found in files, with the line that says it.

    A line that broke off says nothing, nor does one of a file whose reader failed.
    """
    found: dict[str, tuple[dict[str, Any], str]] = {}
    if not state.is_file():
        return found
    with state.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            head, _, _ = line.partition("\t")
            try:
                told = json.loads(head)
            except ValueError:
                continue
            if not (line.endswith("\n") and isinstance(told, dict)) or told.get("passing"):
                continue
            if told.get("key") == key:
                found[told["name"]] = told, line
    return found


def _taken_over(
    sources: list[Source], before: dict[str, tuple[dict[str, Any], str]]
) -> tuple[dict[str, str], list[Source]]:
    """Take over what was found in files that are as they were -> their lines, and the files to read."""
    lines: dict[str, str] = {}
    fresh = []
    for source in sources:
        told, line = before.get(source.name, ({}, ""))
        stat = source.path.stat()
        same = bool(told) and told["size"] == stat.st_size
        untouched = same and (told["path"], told["time"]) == (_named(source.path), stat.st_mtime_ns)
        if untouched or (same and told["sha256"] == _digest(source.path)):
            lines[source.name] = line
        else:
            fresh.append(source)
    return lines, fresh


def _read_all(
    fresh: list[Source], cutting: Cutting, tokenizer: str | None, state: Path, lines: dict[str, str]
) -> None:
    """Read files, and note each as soon as it is done."""
    with appending(state) as file, bar("corpus", len(fresh)) as advance:
        for source, found in _read_parsed(fresh, cutting, tokenizer):
            stat = source.path.stat()
            head = {
                "name": source.name, "path": _named(source.path),
                "size": stat.st_size, "time": stat.st_mtime_ns,
                "sha256": _digest(source.path), "key": cutting.key, "passing": found.passing,
            }  # fmt: skip
            line = (
                f"{json.dumps(head, ensure_ascii=False)}\t{json.dumps(asdict(found), ensure_ascii=False)}\n"
            )
            lines[source.name] = line
            file.write(line)
            file.flush()
            advance(1)


def _digest(path: Path) -> str:
    """Return a file's SHA-256; none of one that may not be read."""
    return digest(path) if os.access(path, os.R_OK) else ""


def _named(path: Path) -> str:
    """Write a path as text, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _read_parsed(
    fresh: list[Source], cutting: Cutting, tokenizer: str | None
) -> Iterator[tuple[Source, FileFound]]:
    for batch in batches(fresh, cutting.parser):
        with parsed(batch, cutting.parser) as ready:
            yield from read_files(ready, cutting, tokenizer)


def _kept(documents: list[Found], cutting: Cutting) -> tuple[list[Excerpt], dict[str, int]]:
    """Leave out passages that are short, of another language, or said before -> the others, and how many."""
    dropped: Counter[str] = Counter()
    kept = []
    for document in documents:
        for passage in document.passages:
            if cutting.languages and document.language not in cutting.languages:
                dropped[f"language {document.language}"] += 1
            elif is_headings(passage.text):
                dropped["headings alone"] += 1
            elif passage.tokens < cutting.least:
                dropped["too short"] += 1
            else:
                kept.append(passage)
    again = near_duplicates([passage.text for passage in kept])
    for place, first in again.items():
        equal = kept[place].text == kept[first].text
        dropped["said before" if equal else "nearly said before"] += 1
    return [passage for place, passage in enumerate(kept) if place not in again], dict(dropped)


def _write(out: Path, passages: list[Excerpt]) -> None:
    with replacing(out) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(passage), ensure_ascii=False) + "\n" for passage in passages)

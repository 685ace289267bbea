"""Read rows that each hold a document: JSONL, CSV, Parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gag.corpus.documents import Document, Fault
from gag.corpus.markdown import markdown_blocks
from gag.errors import DataError

TEXTS = ("text", "content", "body", "markdown", "contents", "document", "abstract")  # in this order
TITLES = ("title", "name", "heading")
LONGEST = 20_000_000  # characters of one document
Row = dict[str, Any]


def read_table(path: Path, source: str) -> Iterator[Document | Fault]:
    """Yield the document of each row, or why a row is none.

    Raises:
        DataError: no column of the file holds texts.
    """
    rows = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    named = ""
    for number, row in rows[path.suffix.lower()](path):
        place = f"{source}:{number}"
        if isinstance(row, str):
            yield place, row
            continue
        column = next((key for key in TEXTS if isinstance(row.get(key), str) and row[key].strip()), "")
        named = named or column
        if not column:
            yield (
                place,
                f"it has no text (a column {', '.join(TEXTS[:4])}); it has {', '.join(row) or 'nothing'}",
            )
        elif len(row[column]) > LONGEST:
            yield place, f"its text has more than {LONGEST:,} characters; part it"
        else:
            title = next(
                (row[key] for key in TITLES if isinstance(row.get(key), str) and row[key].strip()), ""
            )
            blocks = tuple(markdown_blocks(row[column]))
            yield Document(place, title.strip() or place, blocks)
    if not named:
        raise DataError(f"{source} holds no texts; name their column {', '.join(TEXTS[:4])}")


def _jsonl(path: Path) -> Iterator[tuple[int, Row | str]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(4 * LONGEST):
            number += 1
            if not line.endswith(b"\n") and len(line) >= 4 * LONGEST:
                while rest := file.readline(4 * LONGEST):
                    if rest.endswith(b"\n"):
                        break
                yield number, "a single line of more than 80 MB"
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                yield number, "it is no JSON in UTF-8"
                continue
            yield number, row if isinstance(row, dict) else "it is no JSON object"


def _csv(path: Path) -> Iterator[tuple[int, Row | str]]:
    csv.field_size_limit(4 * LONGEST)
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for row in reader:
                yield reader.line_num, {str(key): value for key, value in row.items() if key is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            yield reader.line_num + 1, f"the file cannot be read on from here: {error}"


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


def _parquet(path: Path) -> Iterator[tuple[int, Row | str]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no whole Parquet file: {str(error).splitlines()[0]}") from error

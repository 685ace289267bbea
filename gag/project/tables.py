"""Read the rows of a file, of whatever kind: JSONL, a JSON list, CSV, Parquet; one rule for faulty rows.

A row that cannot be read is set aside and named by its line. More than one in a hundred of them, and at least
three, are no accident: the file is refused.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from gag.errors import DataError
from gag.project.progress import say_once
from gag.project.shapes import persona_of, plain

T = TypeVar("T")
Row = dict[str, Any]
SHARE, LEAST = 0.01, 3  # of the rows may be faulty; fewer than three never stop anything
SHOWN = 3


def read_table(path: Path, make: Callable[[Row, str, int], T]) -> list[T]:
    """Read a file's rows, each made into something; those that cannot be are set aside and named.

    Args:
        path: .jsonl, .json, .csv, .tsv or .parquet.
        make: takes a row, its place such as `rows.jsonl:3`, and its line; raises DataError.

    Raises:
        DataError: the file cannot be read, holds no row, or more than one row in a hundred is faulty, and at
            least three.
    """
    made: list[T] = []
    rows, faults = plain_rows(path)
    persona = persona_of([row for _, row in rows])
    for line, row in rows:
        asked = {key: value for key, value in row.items() if key != "instruction"} if persona else row
        try:
            made.append(make(asked, f"{path.name}:{line}", line))
        except DataError as error:
            faults.append(str(error))
    if faults:
        settle(path.name, len(made), faults)
    return made


def plain_rows(path: Path) -> tuple[list[tuple[int, Row]], list[str]]:
    """Read a file's rows in the plain shape, each with its line -> them, and what is wrong with others."""
    rows: list[tuple[int, Row]] = []
    faults: list[str] = []
    for line, row in table_rows(path):
        try:
            if isinstance(row, str):
                raise DataError(f"{path.name}:{line}{row}")
            rows.append((line, plain(row, f"{path.name}:{line}")))
        except DataError as error:
            faults.append(str(error))
    return rows, faults


def constant_instruction(path: Path) -> str:
    """Return the instruction that all rows of a file share in front of their inputs; none: "".

    It says who answers, and stands in no question: a domain takes it as its expert's prompt.
    """
    stat = path.stat()
    return _constant(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(64)
def _constant(path: Path, size: int, time: int) -> str:
    rows, _ = plain_rows(path)
    return persona_of([row for _, row in rows])


def settle(name: str, good: int, faults: list[str]) -> None:
    """Name a file's faulty rows, or refuse it for them."""
    count, total = len(faults), good + len(faults)
    first = "; ".join(faults[:SHOWN]) + (f"; and {count - SHOWN} more" if count > SHOWN else "")
    if not good:
        raise DataError(f"{name} holds no row that can be read: {first}" if count > 1 else faults[0])
    if count >= LEAST and count > SHARE * total:
        raise DataError(
            f"{count} of {total} rows of {name} cannot be read ({first}); `gag data check` lists them"
        )
    say_once(f"{name}: {count} of {total} rows set aside: {first}")


def table_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    """Yield each row with its line, or what is wrong with it, behind its place.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path.name} does not exist; expected a file of rows")
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if kind in (".csv", ".tsv"):
        yield from _csv(path, text)
    elif text.lstrip()[:1] == "[":
        yield from _list(path, text)
    else:
        yield from _lines(text)


def _lines(text: str) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except DataError as error:
            yield number, f": {error}"
            continue
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield number, f" is not JSON ({reason}); expected one object per line"
            continue
        yield number, _object(row)


def _list(path: Path, text: str) -> Iterator[tuple[int, Row | str]]:
    """Yield the objects of a JSON list; their line is the place in the list."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path.name} is no whole JSON list ({reason}); write it again") from error
    yield from ((number, _object(row)) for number, row in enumerate(rows, 1))


def _object(row: Any) -> Row | str:
    return row if isinstance(row, dict) else f" is a {type(row).__name__}; expected a JSON object"


def _csv(path: Path, text: str) -> Iterator[tuple[int, Row | str]]:
    header = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                yield reader.line_num, " has more fields than the header names"
                continue
            yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: {error}; mend its quotes") from error


def _parquet(path: Path) -> Iterator[tuple[int, Row | str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no whole Parquet file ({str(error).splitlines()[0]})") from error
    yield from enumerate(table.to_pylist(), 1)


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    """Make an object of its pairs; a key that stands twice is refused."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DataError(f"{twice!r} stands twice; keep one of them")
    return found

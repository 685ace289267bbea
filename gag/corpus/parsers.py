"""MinerU as the parser of PDFs: its own program, which may lie in an environment of its own.

It reads scans, tables and formulas that a PDF's text alone does not give, by models that it fetches itself;
its tier `flash` needs none. What it found is read as its output is.
"""

import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from gag.corpus.mineru import STRUCTURED
from gag.corpus.reading import Source
from gag.errors import MissingExtraError, SettingsError

PLAIN, MINERU, PROGRAM = "pypdfium2", "mineru", "mineru-kit"
TIERS = ("flash", "basic", "standard", "advanced")
TOGETHER = 16  # PDFs of one start: its models are loaded once for them


def check_parser(parser: str) -> str:
    """Return a parser's name: `pypdfium2`, `mineru`, or that with a tier, `mineru:flash`.

    Raises:
        SettingsError: there is no such parser.
        MissingExtraError: MinerU is not installed.
    """
    name, _, tier = parser.partition(":")
    if parser != PLAIN and (name != MINERU or (tier and tier not in TIERS)):
        raise SettingsError(
            f"--parser {parser}: take {PLAIN}, {MINERU}, or a tier of it: {MINERU}:{'|'.join(TIERS)}"
        )
    if name == MINERU and shutil.which(PROGRAM) is None:
        raise MissingExtraError(
            f"{PROGRAM} is not on the path; install MinerU 4 in an environment of its own (`pip install "
            "mineru`), and put its bin folder on the path"
        )
    return parser


def batches(fresh: list[Source], parser: str) -> Iterator[list[Source]]:
    """Cut files into batches: those that MinerU parses at once, and all others."""
    pdfs = [source for source in fresh if parser != PLAIN and source.path.suffix.lower() == ".pdf"]
    others = [source for source in fresh if parser == PLAIN or source.path.suffix.lower() != ".pdf"]
    yield from ([others] if others else [])
    yield from (pdfs[start : start + TOGETHER] for start in range(0, len(pdfs), TOGETHER))


@contextmanager
def parsed(batch: list[Source], parser: str) -> Iterator[list[Source]]:
    """Have MinerU parse the PDFs of a batch, if it is to, and name beside each what it wrote for it."""
    if parser == PLAIN or batch[0].path.suffix.lower() != ".pdf":
        yield batch
        return
    with TemporaryDirectory() as name:
        yield _parse(batch, Path(name), parser)


def _parse(batch: list[Source], folder: Path, parser: str) -> list[Source]:
    """Parse PDFs; one that stops MinerU is set aside, and it starts again with those behind."""
    links = [folder / f"{place:03}.pdf" for place in range(len(batch))]  # two files may have one name
    for link, source in zip(links, batch, strict=True):
        link.symlink_to(source.path.resolve())
    left, faults = links, dict[Path, str]()
    while left:
        reason = _run(left, folder, parser)
        missing = [link for link in left if not zipfile.is_zipfile(link.with_suffix(".zip"))]
        faults |= dict.fromkeys(missing[:1], reason)
        left = missing[1:]
    pairs = zip(batch, links, strict=True)
    return [
        replace(source, fault=f"MinerU could not parse it: {faults[link]}")
        if link in faults
        else _unpacked(source, link.with_suffix(".zip"))
        for source, link in pairs
    ]


def _unpacked(source: Source, archive: Path) -> Source:
    contents = archive.with_name(f"{archive.stem}-{STRUCTURED}")
    try:
        with zipfile.ZipFile(archive) as packed:
            contents.write_bytes(packed.read(STRUCTURED))
    except (KeyError, zipfile.BadZipFile):
        return replace(source, fault=f"MinerU wrote no {STRUCTURED} for it; take version 4")
    return replace(source, contents=contents)


def _run(inputs: list[Path], out: Path, parser: str) -> str:
    """Run MinerU; return the last line that it said."""
    tier = parser.partition(":")[2]
    target = out if len(inputs) > 1 else inputs[0].with_suffix(".zip")  # of one it takes a folder for a file
    command = [PROGRAM, "parse", *map(str, inputs), "-o", str(target), "-f", "zip"]
    command += ["--tier", tier] if tier else []
    done = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return (said or ["it said nothing"])[-1].strip()[:200]

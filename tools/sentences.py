"""Collect plain sentences for `gag bridge` from the documentation strings of installed packages.

python -m tools.sentences OUT.jsonl [--packages NAME ...] [--rows N] writes {"text": ...} a line, without
repetition, in an order that is drawn once. The default packages state the Apache-2.0 or the BSD-3-Clause
licence; whoever names others answers for theirs.
"""

import argparse
import ast
import random
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gag.project.rows import write_rows

PACKAGES = ("transformers", "sklearn", "scipy", "numpy", "torch", "pandas", "networkx")
WORDS = range(4, 21)  # of a sentence
_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"(?!.*--)[A-Z][A-Za-z0-9 ,;'\-]+[a-z0-9]\.")
_SEED = 7


def main() -> None:
    """Collect and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    parser.add_argument("--rows", type=int, default=20_000, help="at most")
    args = parser.parse_args()
    found = sorted({text for name in args.packages for text in sentences(name)})
    chosen = random.Random(_SEED).sample(found, min(args.rows, len(found)))
    write_rows(args.out, ({"text": text} for text in chosen))
    print(f"{args.out}: {len(chosen)} of {len(found)} sentences")


def sentences(package: str) -> Iterator[str]:
    """Yield the plain sentences of a package's documentation strings; nothing where it is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        yield from _of_file(path)


def _of_file(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of a package's own escapes
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # a template, or a file for another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            paragraphs = re.split(r"\n\s*\n", ast.get_docstring(node) or "")
            for text in (sentence for one in paragraphs for sentence in _ENDS.split(" ".join(one.split()))):
                if _PLAIN.fullmatch(text) and len(text.split()) in WORDS:
                    yield text


if __name__ == "__main__":
    main()

"""What it costs to read documents, and what the checks of questions find.

A thousand Markdown documents of 20 kB are read twice; a hundred good rows and a hundred with planted errors
are checked; MinerU's sample, where it is at hand (--data), keeps its sections and loses its apparatus.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import harness
from benchmarks.invented import Cheese, cheeses
from gag.corpus.screening import Row, leaks, screen

DOCUMENTS, BYTES = 1000, 20_000
APPARATUS = ("REFERENCES", "ACKNOWLEDGEMENT", "Miyake, M. Wakizoe", "210-0863", "Honolulu", ".jpg")
FLOORS = {
    "1,000 documents, s": ("<=", 60.0),
    "1,000 documents, GB": ("<=", 1.0),
    "the same again, s": ("<=", 3.0),
    "planted errors found, of 100": (">=", 90.0),
    "good rows refused, of 100": ("<=", 5.0),
    "sections of the sample that stay, of 8": (">=", 8.0),
    "parts of the sample's apparatus that stay": ("<=", 0.0),
}


def main() -> None:
    """Measure and print."""
    parser = harness.options(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mineru/")
    args = parser.parse_args()
    figures = thousand() | planted()
    if (args.data / "mineru").is_dir():
        figures |= sample(args.data / "mineru")
    floors = {name: floor for name, floor in FLOORS.items() if name in figures}
    harness.report(args, "corpus", figures, floors, [])


def thousand() -> dict[str, float]:
    """Write documents of prose, and read them with the command, twice."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "documents", Path(name) / "corpus.jsonl"
        folder.mkdir()
        rng = random.Random(0)
        some = cheeses(1000)
        words = " ".join(one.document() for one in some[:100]).split()
        for i in range(DOCUMENTS):
            parts, length = [f"# Document {i}"], 0
            while length < BYTES:
                text = " ".join(rng.choices(words, k=rng.randint(40, 120))).replace("#", "").capitalize()
                parts.append(f"## Section {len(parts)}" if len(parts) % 9 == 4 else f"{text}.")
                length += len(parts[-1]) + 2
            (folder / f"{i:04}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        tokenizer = Path(__file__).parents[1] / "gag" / "pocket" / "assets" / "tokenizer"
        command = [sys.executable, "-m", "gag", "corpus", "build", str(folder), "--out", str(out), "--json",
                   "--tokenizer", str(tokenizer)]  # fmt: skip
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            seconds.append(time.perf_counter() - started)
        told = json.loads(done.stdout.splitlines()[-1])
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        kept = sum(1 for _ in out.open(encoding="utf-8"))
    return {
        "1,000 documents, s": seconds[0],
        "the same again, s": seconds[1],
        "1,000 documents, GB": peak,  # of the largest process
        "files read again": told["read"],
        "passages": kept,
    }


def planted() -> dict[str, float]:
    """Check good rows, and rows of which a quarter each is wrong in one way."""
    rng, some = random.Random(1), cheeses(60, seed=1)
    passages = {one.name: one.document() for one in some}
    good = [row(one, kind, *asked) for one in some[:40] for kind, asked in one.facts().items()]
    good = rng.sample(good, 100)
    wrong = {kind: [] for kind in ("unsupported", "needs its passage", "duplicate")}
    for one in rng.sample(some[:40], 25):
        kind = rng.choice(["home", "wash", "herb", "weeks", "degrees"])
        question, answer = one.facts()[kind]
        others = [other.facts()[kind][1] for other in some if other.facts()[kind][1] not in one.document()]
        wrong["unsupported"].append(row(one, "u", question, rng.choice(others)))
        pointing = [
            f"What does the passage say of the {kind}?",
            "Where is its home?",
            "How many weeks does it take to ripen?",
            "According to the text, which herb goes into it?",
            "What does the author name as the wash?",
            "Which temperature is mentioned above?",
            "What does Table 2 show of the cellar?",
        ]
        wrong["needs its passage"].append(row(one, "p", rng.choice(pointing), answer))
    for one in rng.sample(good, 25):
        altered = rng.choice(
            [str.upper, str.lower, lambda text: f" {text} ", lambda text: text.rstrip("?") + " ?"]
        )
        wrong["duplicate"].append(
            Row(
                one.id + "d", altered(one.question), one.answer, one.group, one.document, one.origin, one.kind
            )
        )
    rows = [*good, *(one for kind in wrong.values() for one in kind)]
    kept, _ = screen(rows, passages)
    stay = {id(one) for one in kept}
    found = {kind: sum(id(one) not in stay for one in of) for kind, of in wrong.items()}
    refused = sum(id(one) not in stay for one in good)
    test = [row(one, kind, *asked) for one in some[40:] for kind, asked in list(one.facts().items())[:2]]
    copied = []
    for one in rng.sample(some[:40], 25):
        kind = rng.choice(list(one.facts()))
        twin = f"{one.name} twin"
        passages[twin] = one.document().replace("so that the rind", "in order that the rind")
        copied.append(
            Row(
                f"l{one.name}",
                f"{one.facts()[kind][0][:-1]} today?",
                one.facts()[kind][1],
                twin,
                twin,
                (twin,),
                "fact",
            )
        )
    train = [row(one, kind, *asked) for one in some[:40] for kind, asked in one.facts().items()]
    leaking = {id(one.row) for one in leaks(train, [*test, *copied], passages)}
    found["leak"] = sum(id(one) in leaking for one in copied)
    counts = Counter(found)
    return {
        "planted errors found, of 100": counts.total(),
        **{f"found: {kind}, of 25": count for kind, count in found.items()},
        "good rows refused, of 100": refused,
        "good test rows refused, of 40": sum(id(one) in leaking for one in test),
    }


def row(one: Cheese, kind: str, question: str, answer: str) -> Row:
    """Make a row of a document's only passage."""
    named = "reason" if kind == "reason" else "fact"
    return Row(f"{one.name}/{kind}", question, answer, one.name, one.name, (one.name,), named)


def sample(folder: Path) -> dict[str, float]:
    """Read MinerU's sample, by its list and by its Markdown alone, and look for what must stay and go."""
    wanted = {
        "ABSTRACT",
        "INTRODUCTION",
        "EXPERIMENTAL",
        "RESULTS AND DISCUSSION",
        "Membrane Degradation Mechanism",
    }
    stays, apparatus = [], []
    for source in (folder, next(folder.glob("*.md"))):
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "corpus.jsonl"
            command = [
                sys.executable,
                "-m",
                "gag",
                "corpus",
                "build",
                str(source),
                "--out",
                str(out),
                "--json",
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            (found,) = json.loads(done.stdout.splitlines()[-1])["found"]
            text = out.read_text(encoding="utf-8")
        headings = {*found["headings"]}
        long = sum(one in " ".join(headings) for one in ("HIGH DURABILITY", "Durability of"))
        stays.append(len(headings & wanted) + long + ("<table>" in text))
        apparatus += [part for part in APPARATUS if part in text]
    return {
        "sections of the sample that stay, of 8": min(stays),
        "parts of the sample's apparatus that stay": len(apparatus),
    }


if __name__ == "__main__":
    main()

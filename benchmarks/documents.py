"""From a folder of invented documents to answers that name them, on the model of `make demo-real`.

`gag init --from`, `gag build` and the engine behind `gag ask --sources`, without an endpoint: sentences
become questions. Then the documents are asked, in wordings most of which no row has; an answer counts where
the value is right, and the document where it is the first source. Takes about half an hour on two cores.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.invented import cheeses
from gag.engine.engine import ProjectGAG
from gag.pocket.write_trade import take_model
from gag.project.project import load_project

DOCUMENTS, QUESTIONS = 24, 50
FLOORS = {"value and document right, of 50": (">=", 40.0)}
KINDS = ("home", "milk", "wash", "herb", "weeks", "degrees")


def main() -> None:
    """Measure and print."""
    parser = harness.options(__doc__)
    parser.add_argument(
        "--project", type=Path, help="where the project is, or is to be (default: for this run)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = args.project or Path(name) / "project"
        if not (root / "gag.yaml").is_file():
            start(root, Path(name))
        run("build", "cheeses", "--project", str(root))
        figures = answers(root)
    harness.report(args, "documents", figures, FLOORS, [])


def start(root: Path, work: Path) -> None:
    """Write the documents, and have a project made of them."""
    folder = work / "cheeses"
    folder.mkdir()
    for one in cheeses(DOCUMENTS):
        (folder / f"{one.name}.md").write_text(one.document(), encoding="utf-8")
    model = take_model(root)
    run("init", str(root), "--from", str(folder), "--base", model, "--expert", model)


def run(*words: str) -> None:
    """Run a command of gag."""
    subprocess.run([sys.executable, "-m", "gag", *words], check=True, stdout=sys.stderr)  # noqa: S603


def answers(root: Path) -> dict[str, float]:
    """Ask, and count what is right."""
    gag = ProjectGAG(load_project(root))
    trained = (root / "data" / "cheeses" / "train.jsonl").read_text(encoding="utf-8")
    pool = [
        (one, *one.facts()[kind])
        for one in cheeses(DOCUMENTS)
        for kind in KINDS
        if f'"{one.name}.md"' in trained
    ]
    asked = random.Random(0).sample(pool, QUESTIONS)
    told = gag.ask([question for _, question, _ in asked])
    counts = dict.fromkeys(("routed", "value", "document", "both"), 0)
    for (one, question, value), answer in zip(asked, told, strict=True):
        written = answer.knowledge.text if answer.knowledge else ""
        sources = gag.sources(answer.route.domain, question, written, answer.text)
        right = value.lower() in answer.text.lower()
        named = bool(sources) and sources[0].document == f"{one.name}.md"
        counts["routed"] += answer.route.domain == "cheeses"
        counts["value"] += right
        counts["document"] += named
        counts["both"] += right and named
        print(f"{question} {value!r}: {answer.text!r}, {[s.document for s in sources]}", file=sys.stderr)
    return {
        "value and document right, of 50": counts["both"],
        "value right, of 50": counts["value"],
        "document right, of 50": counts["document"],
        "sent to the domain, of 50": counts["routed"],
    }


if __name__ == "__main__":
    main()

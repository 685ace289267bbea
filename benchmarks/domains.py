"""Many domains: opening to the first answer, joining one more, and memory.

And a hundred banks of a large encoder.

Every domain is a real folder of its own: the bundled pocket models' adapter and projector, and a bank with
its own centres, scatter and a sample of 200 vectors. Each figure is taken in a process of its own; what a
start with one domain takes is subtracted. The 2,048-dimensional banks are opened by the router alone.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import options, report
from benchmarks.resident import resident, warm_up
from gag.pocket.write import write_project
from gag.project.artifacts import seal
from gag.project.domain import BANK, DOMAIN, STATISTICS, BankFacts, EncoderSpec
from gag.project.project import load_project
from gag.project.rows import read_rows, write_rows
from gag.project.settings import GENERAL, RouterSettings
from gag.project.tensors import load_tensors, save_tensors
from gag.routing.bank import Bank, MemoryBank, Sample, load_bank
from gag.routing.building import FOLDS
from gag.routing.calibration import restored
from gag.routing.router import Router, RouterState
from gag.routing.state import SUMS

QUESTIONS, SAMPLE, CENTRES = 300, 200, 32
BUDGET, ASKED = 8, 20  # domains that stay loaded, domains that are asked
WIDE, WIDE_BANKS = 2048, 100


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--count", type=int, default=1000, help="domains")
    parser.add_argument("--wide", type=int, default=WIDE_BANKS, help="banks at 2,048 dimensions")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = make_project(Path(name) / "project")
        one = measure("open", root)
        multiply(root, args.count)
        first = measure("open", root)  # the set was changed by hand: it is calibrated, once
        many = measure("open", root)
        joined = make_folder(root, Path(name) / "joining", args.count)
        added = measure("add", root, joined)
        wide = measure("wide", make_wide(Path(name) / "wide", args.wide))
    figures = {
        "open_to_first_answer_s": many["seconds"] - one["seconds"],
        "open_after_change_by_hand_s": first["seconds"] - one["seconds"],
        "memory_above_one_domain_mb": (many["bytes"] - one["bytes"]) / 1e6,
        "add_one_more_s": added["seconds"],
        "add_one_more_mb": added["bytes"] / 1e6,
        "wide_open_s": wide["seconds"],
        "wide_resident_mb": wide["bytes"] / 1e6,
    }
    floors = {
        "open_to_first_answer_s": ("<=", 5.0),
        "memory_above_one_domain_mb": ("<=", 400.0),
        "add_one_more_s": ("<=", 60.0),
        "add_one_more_mb": ("<=", 2000.0),
        "wide_open_s": ("<=", 5.0),
        "wide_resident_mb": ("<=", 60.0),
    }
    lines = [
        f"one domain: {one['seconds']:.2f} s to the first answer, {one['bytes'] / 1e6:.0f} MB",
        f"{args.count} domains: {many['seconds']:.2f} s, {many['bytes'] / 1e6:.0f} MB with "
        f"{many['loaded']} loaded",
    ]
    report(args, "domains", figures, floors, lines)


def make_project(root: Path) -> Path:
    """Build one domain of the pocket world on a few of its rows."""
    from gag.stages.build import build

    write_project(root, 7, 24)
    name = next(iter(load_project(root).settings.domains))
    for role in ("adapt", "align", "val"):
        rows = [row for _, row in read_rows(root / "data" / name / f"{role}.jsonl")]
        write_rows(root / "data" / name / f"{role}.jsonl", rows[:64])
    questions = [row for _, row in read_rows(root / "data" / "general" / "questions.jsonl")]
    write_rows(root / "data" / "general" / "questions.jsonl", questions)
    build(
        load_project(root, ("adapt.epochs=0.25", "align.epochs=1", f"decoding.resident_domains={BUDGET}")),
        [name],
    )
    (root / "domains" / name).rename(root / "domains" / "d0000")
    return root


def multiply(root: Path, count: int) -> None:
    """Put more domains beside the first, each in a folder of its own."""
    for number in range(1, count):
        make_folder(root, root / "domains" / f"d{number:04d}", number)


def make_folder(root: Path, folder: Path, number: int) -> Path:
    """Copy the first domain under another name, with a bank of its own."""
    shutil.copytree(root / "domains" / "d0000", folder, ignore=shutil.ignore_patterns(".*", DOMAIN))
    facts = json.loads((root / "domains" / "d0000" / DOMAIN).read_text())
    encoder = EncoderSpec(**facts["bank"]["encoder"])
    saved = random_bank(number, encoder).save(folder)
    described = {k: v for k, v in facts.items() if k not in ("schema", "files")}
    changed = {"name": f"d{number:04d}", "key": f"{number}", "bank": saved.model_dump(mode="json")}
    seal(folder, described | changed, DOMAIN)
    return folder


def random_bank(number: int, encoder: EncoderSpec) -> MemoryBank:
    """Draw a domain's questions about a direction of its own, and sum them up."""
    generator = torch.Generator().manual_seed(number)
    direction = torch.nn.functional.normalize(torch.randn(encoder.width, generator=generator), dim=0)
    noise = torch.randn(QUESTIONS, encoder.width, generator=generator) / encoder.width**0.5
    vectors = torch.nn.functional.normalize(direction + noise, dim=-1)
    mean = vectors.mean(0)
    centred = vectors - mean
    places = torch.arange(SAMPLE, dtype=torch.int32)
    return MemoryBank(
        centres=vectors[:CENTRES],
        sizes=torch.full((CENTRES,), QUESTIONS / CENTRES),
        mean=mean,
        count=QUESTIONS,
        encoder=encoder,
        lengths=torch.ones(CENTRES),
        scatter=centred.T @ centred,
        sample=Sample(vectors[:SAMPLE], places % CENTRES, places % FOLDS),
    )


def make_wide(folder: Path, count: int) -> Path:
    """Write banks of a large encoder, and what the router decided for their set."""
    spec = EncoderSpec("wide", "own", 256, WIDE)
    for number in range(count):
        target = folder / (GENERAL if number == 0 else f"d{number:04d}")
        target.mkdir(parents=True)
        facts = random_bank(number, spec).save(target)
        (target / "facts.json").write_text(facts.model_dump_json())
    state = Router(wide_banks(folder), _Silent(spec), RouterSettings()).state
    if state.calibration is None or state.root is None or state.total is None:
        raise RuntimeError(f"the router decided nothing: {state.warning}")
    save_tensors(folder / SUMS, {"root": state.root, "total": state.total})
    decided = {"members": state.members, "calibration": asdict(state.calibration)}
    (folder / "state.json").write_text(json.dumps(decided))
    return folder


def wide_banks(folder: Path) -> dict[str, Bank]:
    """Open the banks in the folders of a folder."""
    found: dict[str, Bank] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        facts = BankFacts.model_validate_json((path / "facts.json").read_text())
        found[path.name] = load_bank(
            path, facts, {name: f"{path.name} {name}" for name in (BANK, STATISTICS)}
        )
    return found


class _Silent:
    """An encoder that nobody asks."""

    def __init__(self, spec: EncoderSpec):
        self.spec = spec

    def encode(self, questions: list[str]) -> torch.Tensor:
        raise NotImplementedError


def measure(what: str, *paths: Path) -> dict[str, Any]:
    """Take a figure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.domains", "--measure", what, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own module
    return json.loads(done.stdout.splitlines()[-1])


def measure_open(root: Path) -> dict[str, Any]:
    """Open the engine and ask; then ask more domains than stay loaded, and look at the memory."""
    from gag.engine.engine import ProjectGAG

    project = load_project(root, (f"decoding.resident_domains={BUDGET}",))
    warm_up()
    before, started = resident(), time.perf_counter()
    gag = ProjectGAG(project)
    gag.ask("What is the dose of Vax-Debo?", gag.domains.names[0])
    seconds = time.perf_counter() - started
    for name in gag.domains.names[:ASKED]:
        gag.ask("What is the dose of Vax-Debo?", name)
    gag.ask("What is the dose of Vax-Debo?")
    return {"seconds": seconds, "bytes": resident() - before, "loaded": len(gag.domains.loaded)}


def measure_add(root: Path, folder: Path) -> dict[str, Any]:
    """Add a domain, its calibration included; the peak above what loading the models alone takes."""
    from gag.engine.domains import add_domain
    from gag.models.loading import load_backbone
    from gag.project.memory import peak_bytes

    project = load_project(root)
    models = [load_backbone(chosen, root) for chosen in (project.settings.base, project.settings.expert)]
    warm_up()
    del models
    before, started = resident(), time.perf_counter()
    add_domain(project, folder)
    return {"seconds": time.perf_counter() - started, "bytes": max(0, peak_bytes() - before)}


def measure_wide(folder: Path) -> dict[str, Any]:
    """Open the router over the banks, as a start does when the set is the one that was decided for."""
    warm_up()
    before, started = resident(), time.perf_counter()
    decided = json.loads((folder / "state.json").read_text())
    calibration = restored(decided["calibration"])
    state = RouterState(decided["members"], calibration, "", **load_tensors(folder / SUMS, mapped=True))
    router = Router(
        wide_banks(folder), _Silent(EncoderSpec("wide", "own", 256, WIDE)), RouterSettings(), state
    )
    router.route_vectors(torch.nn.functional.normalize(torch.randn(4, WIDE), dim=-1))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": resident() - before, "kept": router.state is state}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        taken = {"open": measure_open, "add": measure_add, "wide": measure_wide}[sys.argv[2]]
        print(json.dumps(taken(*map(Path, sys.argv[3:]))))
    else:
        main()

"""The loss curves of two checkouts: adapt and align over twenty steps, in float32 on a CPU, row by row.

python -m benchmarks.losses OTHER [--start random|ridge] compares this checkout with another one. A checkout
is measured in a process of its own, on the same rows of the bundled world. The expert is taught a file of its
own, and each step of alignment is an epoch, so that every loss is logged.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS, STEPS = 64, 20
ROOT = Path(__file__).parents[1]
MEASURE = f"""
import json, sys
from pathlib import Path
import yaml
try:
    from gag.pocket.write import write_project
    from gag.project.project import load_project
except ImportError:
    from gag.pocket.project import write_project
    from gag.config import load_project
root, start = Path(sys.argv[1]), sys.argv[2]
write_project(root, 7, 24)
name = "adjuvants"
for role in ("adapt", "align", "val"):
    path = root / "data" / name / f"{{role}}.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:{ROWS}]))
content = yaml.safe_load((root / "gag.yaml").read_text())
for group in ("corpus", "pretrain"):
    content.pop(group, None)
content["domains"][name].pop("corpus")
content["adapt"] |= {{"epochs": {STEPS}, "batch_size": {ROWS}, "micro_batch_size": 32}}
content["readout"] |= {{"space": "hidden"}}
content["align"] |= {{"projector": "mlp", "start": start, "epochs": {STEPS}, "batch_size": {ROWS}}}
(root / "gag.yaml").write_text(yaml.safe_dump(content))
project = load_project(root)
from gag.stages.adapt import adapt
from gag.stages.readouts import readouts
from gag.stages.align import align
folders = [adapt(project, name), readouts(project, name), align(project, name)]
from safetensors.torch import load_file
slots = load_file(next((folders[1] / "align").glob("*.safetensors")))["slots"]
rows = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
print(json.dumps({{
    "adapt": [row["loss"] for row in rows(folders[0] / "expert.log.jsonl") if "loss" in row],
    "slots": float(slots.double().abs().sum()),
    "align": [row["loss"] for row in rows(folders[2] / "log.jsonl") if "loss" in row],
    "val": [row["val_loss"] for row in rows(folders[2] / "log.jsonl") if "val_loss" in row],
}}))
"""


def measure(checkout: Path, start: str) -> dict[str, list[float]]:
    """Run the stages of a checkout -> its losses."""
    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run(  # noqa: S603 - our own code
            [sys.executable, "-W", "ignore", "-c", MEASURE, str(Path(name) / "project"), start],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument(
        "--start", default="random", choices=["random", "ridge"], help="where the projector starts"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    ours, theirs = measure(ROOT, args.start), measure(args.other, args.start)
    figures = {"start": args.start, "steps": STEPS}
    for name in ours:
        figures[f"{name}_identical"] = ours[name] == theirs[name]
        pairs = zip(*(v if isinstance(v, list) else [v] for v in (ours[name], theirs[name])), strict=True)
        figures[f"{name}_largest_difference"] = max(abs(a - b) for a, b in pairs)
    for name, value in figures.items():
        print(f"{name:<32} {value}")
    if args.json:
        print(json.dumps({"benchmark": "losses", "figures": figures}))


if __name__ == "__main__":
    main()

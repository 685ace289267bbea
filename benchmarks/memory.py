"""Memory of an engine against the number of its domains, and the sizes of what training leaves on disk.

A domain is built once for a random base and expert and copied under other names; each engine is loaded in a
process of its own. Sizes at the paper's shapes (2048 -> 4096) are counted without allocating anything.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks.harness import SMALL, options, report
from benchmarks.resident import resident, warm_up
from gag.pocket.world import ASSETS
from gag.project.artifacts import folder_bytes
from gag.project.domain import DOMAIN, PROJECTOR
from gag.project.project import load_project
from gag.project.rows import write_rows
from gag.project.tensors import load_tensors
from gag.projection.projector import make_projector
from gag.stages.build import build

DOMAINS = (1, 2, 4, 8)
DEEPER = {
    "num_hidden_layers": 24
}  # so that tokenizers and the libraries' own pools, some 18 MB, weigh as little as in use
CHECKPOINT = "step-00000002"


def main() -> None:
    """Measure and print."""
    args = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = write_project(Path(name))
        build(load_project(root), ["d0"])
        held = {count: engine_bytes(root, count) for count in DOMAINS}
        figures, lines = engine_figures(root, held)
        figures |= checkpoint_figures(root)
    figures |= paper_figures()
    floors = {"engine_over_parts_8_domains": ("<=", 1.05), "checkpoint_over_weights": ("<=", 3.2),
              "module_mb_v1": ("<=", 130.0), "module_mb_v4": ("<=", 130.0),
              "store_kb_a_question_v1": ("<=", 4.2), "store_kb_a_question_v4": ("<=", 70.0)}  # fmt: skip
    report(args, "memory", figures, floors, lines)


def write_project(root: Path) -> Path:
    """Write a project with random models and one domain of a few rows."""
    tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / "tokenizer"))
    for seed, (role, shape) in enumerate(SMALL.items()):
        torch.manual_seed(seed)
        config = Qwen3Config(
            **shape | DEEPER | {"vocab_size": len(tokenizer)},
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        Qwen3ForCausalLM(config).save_pretrained(root / role)
        tokenizer.save_pretrained(root / role)
    rows = [
        {"question": f"What is thing number {i}?", "answer": f"value {i}", "group": str(i)} for i in range(64)
    ]
    write_rows(root / "rows.jsonl", rows)
    settings = {
        "base": {"model": "base"}, "expert": {"model": "expert"},
        "adapt": {"epochs": 0.25, "batch_size": 8, "micro_batch_size": 8, "gradient_checkpointing": False},
        "readout": {"layers": [-1], "max_new_tokens": 8}, "align": {"epochs": 1, "batch_size": 16},
        "domains": {"d0": {"train": "rows.jsonl"}},
    }  # fmt: skip
    (root / "gag.yaml").write_text(yaml.safe_dump(settings))
    return root


def engine_bytes(root: Path, count: int) -> int:
    """Load an engine with some domains in a new process -> bytes that it holds above its imports."""
    for i in range(count):
        target = root / "domains" / f"d{i}"
        if not target.exists():
            shutil.copytree(root / "domains" / "d0", target)
            facts = json.loads((target / DOMAIN).read_text())
            (target / DOMAIN).write_text(json.dumps(facts | {"name": f"d{i}"}))
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", str(root), str(count)]
    return int(
        subprocess.run(  # noqa: S603 - our own module
            command,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-1]
    )


def measure(root: Path, count: int) -> None:
    """Load the engine of a project and its domains, ask once, and print the bytes that were added."""
    import peft  # noqa: F401 - what a first question imports late is no memory of the engine's

    from gag.engine.engine import GAG

    warm_up()
    before = resident()
    gag = GAG.open(load_project(root))
    for i in range(count):
        gag.domains.module(f"d{i}")
    gag.ask("What is thing number 1?", "d0")
    print(resident() - before)


def engine_figures(root: Path, held: dict[int, int]) -> tuple[dict[str, float], list[str]]:
    """Compare the engine with the sum of its parts."""
    models = sum(parameter_bytes(root / role) for role in SMALL)
    module = sum(
        parameter_bytes(path) for path in (root / "domains" / "d0", root / "domains" / "d0" / "expert")
    )
    lines = [
        f"{count} domains: {held[count] / 1e6:.1f} MB held, {(models + count * module) / 1e6:.1f} MB of parts"
        for count in held
    ]
    slope = (held[8] - held[1]) / 7
    figures = {"engine_over_parts_8_domains": held[8] / (models + 8 * module), "mb_a_domain": slope / 1e6,
               "mb_a_module_on_disk": module / 1e6}  # fmt: skip
    return figures, lines


def parameter_bytes(folder: Path) -> int:
    """Sum the safetensors files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def checkpoint_figures(root: Path) -> dict[str, float]:
    """Stop an alignment after its first checkpoint and look at its size."""
    from gag.stages import align as stage

    project = load_project(root, ("align.epochs=3", "align.checkpoint_minutes=0"))
    original, kept = stage.Run.close, {}

    def close(run: Any) -> None:
        kept["bytes"] = folder_bytes(next(iter(sorted(run.folder.glob("step-*")))))
        original(run)

    stage.Run.close = close
    try:
        folder = stage.align(project, "d0")
    finally:
        stage.Run.close = original
    weights = sum(tensor.numel() * 4 for tensor in load_tensors(folder / PROJECTOR).values())
    return {"checkpoint_over_weights": kept["bytes"] / weights}


def paper_figures() -> dict[str, float]:
    """Count a module's and a question's bytes at the paper's shapes, in bfloat16.

    The module is what lies beside the expert.
    """
    figures: dict[str, float] = {}
    for preset, kind, slots, layers in (("v1", "mlp", 1, 1), ("v4", "gated_residual", 4, 4)):
        with torch.device("meta"):
            projector = make_projector(kind, (slots, layers, 2048), 4096)
        bank = 32 * 2048 * 4
        figures[f"module_mb_{preset}"] = (sum(p.numel() * 2 for p in projector.parameters()) + bank) / 1e6
        figures[f"store_kb_a_question_{preset}"] = slots * layers * 2048 * 2 / 1000
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()

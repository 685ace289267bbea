"""Run families and write docs/models.md."""

import datetime
import os
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # float32 on a CPU, where equal is equal to the bit

import transformers

from gag.errors import GagError
from gag.models.loading import load_backbone
from gag.project.settings import ModelSettings
from tools.families.checks import Stock, alignment, differs_from_stock, tuned, write_project
from tools.families.shapes import FAMILIES, WRAPPERS

DOC = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """\
# Models

Any decoder that transformers {transformers} runs from embeddings with a cache can be a base or an expert: a
Hugging Face id, a folder or a GGUF file, a tokenizer of the fast kind with a chat template. Of a model with a
vision tower its text model is taken. A model is tried when it is loaded (`gag/models/dry_run.py`) and refused
in one line if it cannot serve.

What was run: a base (32 wide) and an expert (24 wide) of each family below, two layers of random weights with
the family's own config class and code and the bundled tokenizer, in float32 on a CPU ({system}, Python
{python}, torch {torch}, transformers {transformers}, PEFT {peft}, TRL {trl}), on {day}. No published weights
are among them. `make families` runs it again and writes this page.

- **as stock**: a question's ids and logits are those of transformers' own model with its chat template, bit
  for bit, and a padded batch decodes the tokens that the stock model likes best one by one.
- **align**: the largest relative difference, of loss or gradient, between alignment's forward pass and the
  plain one, for a padded batch longer than the windows. "whole rows": layers with a running state, which
  share no prefix.
- **LoRA, full**: plan, build, ask, evaluate with evidence and verify, with that kind of tuning.

| family | such as | as stock | align | LoRA | full |
|---|---|---|---|---|---|
"""


def row(family: str, like: str, root: Path) -> str:
    """Run a family -> its row of the table."""
    write_project(root, family)
    folder = root / "models" / "base"
    try:
        base = load_backbone(ModelSettings(model=str(folder), device="cpu"), root)
    except GagError as error:
        reason = " ".join(str(error).replace(f"{folder}", family).split())
        return f"| {family} | {like} | refused: {reason} | | | |"
    off = differs_from_stock(base, Stock(base, folder)) or "yes"
    found = alignment(base)
    apart = f"{max(found.loss, found.gradient):.0e}" + (", whole rows" if base.recurrent else "")
    done = [tuned(root, tuning) or "yes" for tuning in ("lora", "full")]
    return f"| {family} | {like} | {off} | {apart} | {done[0]} | {done[1]} |"


def main() -> None:
    """Run all families, or those that are named, and write the page."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    likes = {name: family.like for name, family in FAMILIES.items()}
    likes |= {name: f"{likes[inner]}, with a vision tower" for name, (_, inner, _) in WRAPPERS.items()}
    chosen = sys.argv[1:] or list(likes)
    rows = []
    for family in chosen:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(family, likes[family], Path(folder)))
        print(rows[-1], flush=True)
    if chosen == list(likes):
        packages = {name: version(name) for name in ("transformers", "torch", "peft", "trl")}
        told = {
            "system": platform.system(),
            "python": platform.python_version(),
            "day": datetime.date.today(),
        }
        DOC.write_text(HEAD.format(**packages, **told) + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

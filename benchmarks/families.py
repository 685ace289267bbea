"""Load small random models of every family on a device in half precision: the dry run must take what serves.

Rounding is larger there than on a CPU, and so are the limits of `gag.models.dry_run`. Prints what is refused.
"""

import tempfile
import warnings
from pathlib import Path

from benchmarks.harness import options, report
from gag.errors import GagError
from gag.models.loading import load_backbone
from gag.project.settings import ModelSettings, PromptSettings
from gag.projection.alignment import Reader, Row
from tools.families.checks import ANSWERS, QUESTIONS
from tools.families.shapes import FAMILIES, WRAPPERS, write_model

REFUSED = {"gemma4_per_layer", "mamba2", "qwen2_5_vl"}


def main() -> None:
    """Measure and print."""
    args = options(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    dtype = "bfloat16"
    lines, wrong, whole = [], 0, 0
    for family in [*FAMILIES, *WRAPPERS]:
        with tempfile.TemporaryDirectory() as folder:
            settings = ModelSettings(model="m", device=args.device, dtype=dtype)
            try:
                write_model(family, Path(folder) / "m", 64)
                base = load_backbone(settings, Path(folder))
            except GagError as error:
                wrong += family not in REFUSED
                lines.append(f"{family}: {error}")
                continue
            prompts = [
                base.prompts.with_knowledge(question, PromptSettings(answer="Answer."))
                for question in QUESTIONS
            ]
            rows = [Row(p, base.prompts.answer(a), []) for p, a in zip(prompts, ANSWERS, strict=True)]
            whole += Reader(base, rows)._whole and not base.recurrent
    figures = {"wrongly_refused": float(wrong), "shared_openings_given_up": float(whole)}
    report(args, "families", figures, dict.fromkeys(figures, ("<=", 0.0)), lines)


if __name__ == "__main__":
    main()

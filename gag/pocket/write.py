"""Write the project of a bundled world.

Models, data files, and a gag.yaml with settings chosen for pocket models.
"""

import random
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from gag.pocket.hard import NUMERIC, HardDomain, make_hard
from gag.pocket.public_facts import PublicFact, public_facts
from gag.pocket.world import ANSWER_PROMPT, EXPERT_PROMPT, TEST_WORDINGS, Fact, PrivateDomain, make_world
from gag.project.parsing import PROJECT_FILE, parse_settings
from gag.project.rows import write_rows
from gag.project.settings import ProjectSettings

ALIGN_WORDINGS = 4
HARD_ENTITIES = 60
PLAIN_WORDINGS = 6
GENERAL_BANK_SHARE = 0.4
PRESET = "vocabulary"

# Chosen on validation facts of other worlds (docs/pocket.md).
SETTINGS: dict[str, Any] = {
    "base": {"model": "models/base"},
    "expert": {"model": "models/expert"},
    "general": {"questions": "data/general/questions.jsonl", "test": "data/general/test.jsonl"},
    "adapt": {
        "tuning": "lora",
        "rank": 32,
        "learning_rate": 3e-3,
        "epochs": 2.5,
        "batch_size": 64,
        "micro_batch_size": 64,
        "warmup": 0.05,
        "max_tokens": 128,
        "gradient_checkpointing": False,
    },
    "pretrain": {
        "learning_rate": 1e-3,
        "epochs": 1,
        "batch_size": 8,
        "micro_batch_size": 8,
        "block_tokens": 256,
    },
    "readout": {"max_new_tokens": 40, "batch_tokens": 8192},
    "align": {"learning_rate": 1e-3, "batch_size": 32, "weight_decay": 0.1, "noise": 0.3},
    "decoding": {"max_new_tokens": 12, "batch_size": 64},
    "evaluation": {
        "metrics": {"general": ["contains"], "*": ["contains", "f1", "bertscore", "similarity"]},
        "bertscore": "expert",
        "similarity": "expert",
    },  # no pretrained encoder is at hand
}
PRESETS: dict[str, dict[str, Any]] = {
    "v1": {
        "readout": {"space": "hidden", "layers": [-1], "slots": 1, "pooling": "mean", "select": "segments"},
        "align": {"projector": "mlp", "start": "ridge", "epochs": 8, "semantic": 0.0, "diversity": 0.0},
    },
    "v4": {
        "readout": {
            "space": "hidden",
            "layers": [-1, -2, -4],
            "slots": 4,
            "pooling": "mean",
            "select": "segments",
        },
        "align": {
            "projector": "gated_residual",
            "start": "ridge",
            "epochs": 8,
            "semantic": 0.01,
            "diversity": 0.001,
        },
    },
    "vocabulary": {
        "readout": {
            "space": "vocabulary",
            "layers": [-1],
            "slots": 1,
            "pooling": "mean",
            "select": "segments",
        },
        "align": {
            "projector": "gated_residual",
            "start": "identity",
            "epochs": 4,
            "semantic": 0.0,
            "diversity": 0.0,
        },
    },
    "salient": {
        "readout": {"space": "vocabulary", "select": "salient", "layers": [-1], "slots": 4},
        "align": {
            "projector": "residual",
            "start": "identity",
            "epochs": 4,
            "noise": 0.0,
            "semantic": 0.0,
            "diversity": 0.0,
        },
    },
}


def write_project(
    root: Path, seed: int, entities: int, header: str = "", preset: str = PRESET, hard: bool = False
) -> ProjectSettings:
    """Write the world of a seed as a project under `root`; return its settings. `header` opens gag.yaml.

    With `hard`, the first domain also has questions by aliases and over two statements (gag/pocket/hard.py),
    and the others
    are a third of its size: they stand by as other modules.
    """
    world = make_world(seed, entities)
    first, *others = world
    if hard:
        world |= {name: make_world(seed, entities // 3)[name] for name in others}
    settings: dict[str, Any] = (
        {"preset": preset} | SETTINGS | {"domains": {name: _domain_settings(name) for name in world}}
    )
    settings |= {group: SETTINGS[group] | changed for group, changed in PRESETS[preset].items()}
    settings["evaluation"] = SETTINGS["evaluation"] | {
        "variants": {n: p for n, p in PRESETS.items() if n != preset}
    }
    write_settings(root / PROJECT_FILE, header + yaml.safe_dump(settings, sort_keys=False))
    _copy_models(root / "models")
    _write_general(root / "data" / "general", random.Random(f"{seed}/general"))
    for name, domain in world.items():
        rng = random.Random(f"{seed}/{name}/rows")
        more = make_hard(domain, [world[other] for other in others], rng) if hard and name == first else None
        _write_domain(root / "data" / name, domain, rng, more)
    return parse_settings(settings)


def write_settings(path: Path, text: str) -> None:
    """Write gag.yaml, first and at once: it marks the folder as a demo's, whatever is written after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _copy_models(folder: Path) -> None:
    with as_file(files("gag.pocket") / "assets") as assets:
        for name in ("base", "expert"):
            shutil.copytree(assets / name, folder / name, dirs_exist_ok=True)
            shutil.copytree(assets / "tokenizer", folder / name, dirs_exist_ok=True)


def _write_general(folder: Path, rng: random.Random) -> None:
    """Split the public facts: some stand in the bank, the others are asked; a fact is never in both."""
    facts = rng.sample(public_facts(), len(public_facts()))
    cut = round(GENERAL_BANK_SHARE * len(facts))
    bank, test = facts[:cut], facts[cut:]
    write_rows(folder / "questions.jsonl", [_public_row(fact, q) for fact in bank for q in fact.questions])
    write_rows(folder / "test.jsonl", [_public_row(fact, rng.choice(fact.questions)) for fact in test])


def _write_domain(folder: Path, domain: PrivateDomain, rng: random.Random, more: HardDomain | None) -> None:
    def seen(fact: Fact, count: int | None = None) -> list[int]:
        wordings = domain.train_wordings(fact.relation)
        return wordings if count is None else rng.sample(wordings, count)

    taught = PLAIN_WORDINGS if more else None  # the hard questions teach the facts too
    adapt = [
        _row(fact, i) | {"answer": fact.background()} for fact in domain.facts for i in seen(fact, taught)
    ]
    align, val = (
        [_row(fact, i) for fact in facts for i in seen(fact, ALIGN_WORDINGS)]
        for facts in (domain.align, domain.val)
    )
    asked = [(fact, i, "seen") for fact in domain.test for i in seen(fact, TEST_WORDINGS)]
    asked += [(fact, i, "unseen") for fact in domain.test for i in domain.test_wordings[fact.relation.name]]
    test = [
        _row(fact, i)
        | {"wording": wording, "new_value": domain.is_new(fact), "slices": _slices(domain, fact, wording)}
        for fact, i, wording in asked
    ]
    corpus = [{"id": _group(fact), "text": fact.statement()} for fact in domain.facts]
    if more:
        adapt, test = adapt + more.adapt(rng), test + more.test(rng)
        align, val = align + more.align(domain.align, rng), val + more.align(domain.val, rng)
        corpus += [{"id": passage.id, "text": passage.text} for passage in more.statements()]
    for name, rows in {"adapt": adapt, "align": align, "val": val, "test": test, "corpus": corpus}.items():
        write_rows(folder / f"{name}.jsonl", rows)


def _slices(domain: PrivateDomain, fact: Fact, wording: str) -> list[str]:
    new = ["values never an answer in alignment"] if domain.is_new(fact) else []
    return [f"{wording} wordings", *new, *(["numeric answers"] if fact.relation.name in NUMERIC else [])]


def _row(fact: Fact, wording: int) -> dict[str, Any]:
    return {
        "id": f"{_group(fact)}/{wording}",
        "question": fact.question(wording),
        "answer": fact.value,
        "group": _group(fact),
    }


def _group(fact: Fact) -> str:
    return f"{fact.entity}/{fact.relation.name}"


def _public_row(fact: PublicFact, question: str) -> dict[str, Any]:
    group = f"{fact.relation}/{fact.subject}"
    row = {"question": question, "answer": fact.value, "group": group, "near": fact.near}
    return {"id": f"{group}/{fact.questions.index(question)}"} | row


def _domain_settings(name: str) -> dict[str, Any]:
    data = {role: f"data/{name}/{role}.jsonl" for role in ("adapt", "align", "val", "test", "corpus")}
    return data | {"prompts": {"expert": EXPERT_PROMPT, "answer": ANSWER_PROMPT}}

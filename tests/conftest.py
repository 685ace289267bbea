"""Fixtures: two-layer random models, and a project of two tiny domains that is built once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: more threads would wait
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # what tests compare is float32 on a CPU, on every machine
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line does without a terminal

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from gag.models.backbone import Backbone
from gag.models.loading import load_backbone
from gag.project.progress import say_once
from gag.project.project import Project, load_project
from gag.project.rows import write_rows
from gag.project.settings import ModelSettings

TOKENIZER = Path(str(files("gag.pocket") / "assets" / "tokenizer"))
METALS = ["copper", "nickel", "cobalt", "zinc", "tin", "iron", "lead", "gold"]
PLANTS = ["fern", "moss", "lily", "thistle", "clay", "chalk", "slate", "brick"]


def make_model(folder: Path, width: int, seed: int, **changes: Any) -> Path:
    """Write a random two-layer model with the bundled tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(seed)
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    } | changes
    config = Qwen3Config(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **shape
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_project(root: Path, **changes: Any) -> Path:
    """Write a project with two domains of eight facts each."""
    make_model(root / "models" / "base", 32, 0)
    make_model(root / "models" / "expert", 24, 1)
    for domain, values in {"metals": METALS, "plants": PLANTS}.items():
        rows = [
            {"id": f"{v}/{w}", "question": f"{w} is in {domain} number {i}?", "answer": v, "group": v}
            for i, v in enumerate(values)
            for w in ("What", "Which one")
        ]
        write_rows(root / "data" / f"{domain}.jsonl", rows[:12])
        write_rows(root / "data" / f"{domain}-test.jsonl", rows[12:])
    write_rows(root / "data" / "general.jsonl", [{"question": f"What is {i} plus {i}?"} for i in range(6)])
    settings = {
        "base": {"model": "models/base"},
        "expert": {"model": "models/expert"},
        "general": {"questions": "data/general.jsonl"},
        "router": {"centres": 3},
        "adapt": {
            "rank": 4,
            "epochs": 1,
            "batch_size": 4,
            "micro_batch_size": 4,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
        },
        "readout": {"layers": [-1], "pooling": "mean", "max_new_tokens": 4, "batch_tokens": 150},
        "align": {"epochs": 2, "batch_size": 4},
        "decoding": {"max_new_tokens": 4, "batch_size": 3},
        "domains": {
            d: {
                "train": f"data/{d}.jsonl",
                "test": f"data/{d}-test.jsonl",
                "prompts": {"expert": "Say.", "answer": "Tell."},
            }
            for d in ("metals", "plants")
        },
    }
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value}
    (root / "gag.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


class Alone:
    """A source of one expert, which is its own backbone."""

    def __init__(self, expert: Backbone):
        self.expert = expert

    @contextmanager
    def using(self, name: str | None) -> Iterator[Backbone]:
        yield self.expert

    def mixed(self, name: str) -> None:
        return None


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A random frozen base, 32 wide."""
    root = tmp_path_factory.mktemp("base")
    return load_backbone(ModelSettings(model=str(make_model(root / "base", 32, 0))), root)


@pytest.fixture(scope="session")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A random expert backbone, 24 wide."""
    root = tmp_path_factory.mktemp("expert")
    return load_backbone(ModelSettings(model=str(make_model(root / "expert", 24, 1))), root)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with both domains built; tests that change it take `project`."""
    from gag.stages.build import build

    root = write_tiny_project(tmp_path_factory.mktemp("built"))
    build(load_project(root), ["metals", "plants"])
    return root


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Project:
    """A private copy of the built project."""
    shutil.copytree(built, tmp_path / "copy")
    return load_project(tmp_path / "copy")


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """Each test begins as a process does: what is said once was not said yet."""
    say_once.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file, so that the other worker is not left waiting for it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")

"""What is checked on a family: against transformers' own model, and through all verbs of a project."""

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from gag.engine.domains import verify_domains
from gag.engine.engine import GAG
from gag.errors import GagError
from gag.evaluation.evaluate import evaluate
from gag.evaluation.labelled import read_test_rows
from gag.models.backbone import Backbone
from gag.models.language_model import Request, generate
from gag.planning.plan import plan
from gag.project.project import Project, load_project
from gag.project.rows import write_rows
from gag.project.settings import PromptSettings
from gag.projection.alignment import Reader, Row
from gag.projection.injection import inject
from gag.projection.losses import label_loss
from gag.stages.build import build
from tools.families.shapes import write_model

QUESTIONS = [
    "Which additive is it?",
    "Which additive " + "of the long series " * 12 + "is it?",
    "What " + "now " * 70 + "?",
]
ANSWERS = ["tin", "silver foam", "a b c d e"]
NEW = 5
VALUES = ["copper", "nickel", "cobalt", "zinc", "tin", "iron", "silver", "chrome"]


@dataclass(frozen=True)
class Alignment:
    """How far alignment's forward pass is from the plain one, row by row: relative, loss and gradient."""

    loss: float
    gradient: float


class Stock:
    """A model as transformers alone loads and prompts it."""

    def __init__(self, base: Backbone, folder: Path):
        config = AutoConfig.from_pretrained(folder)
        known: Any = AutoModelForCausalLM
        if type(config) not in known._model_mapping:
            known = AutoModelForImageTextToText
        attention = base.model.config._attn_implementation
        self.model: Any = known.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).eval()
        self.model.requires_grad_(False)  # PyTorch may take other kernels where a gradient can be asked for
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, question: str) -> list[int]:
        """Encode a question with the model's own template."""
        turn = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, enable_thinking=False, return_dict=True
        )["input_ids"]

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """Run a prompt -> [T, V]."""
        return self.model(torch.tensor([ids])).logits[0]


@torch.no_grad()
def differs_from_stock(base: Backbone, stock: Stock) -> str:
    """Compare ids and logits bit for bit, and a batch's greedy tokens; return what differs, else nothing."""
    wanted = []
    for question in QUESTIONS:
        ids = stock.ids(question)
        if base.prompts.plain(question) != ids:
            return "ids"
        logits = stock.logits(ids)
        if not torch.equal(base.model(inputs_embeds=base.embed(ids)[None]).logits[0], logits):
            return "logits"
        written: list[int] = []
        for _ in range(NEW):
            written.append(int(stock.logits(ids + written)[-1].argmax()))
        wanted.append(written)
    requests = [Request(base.embed(base.prompts.plain(question)), NEW) for question in QUESTIONS]
    for made, written in zip(generate(base, requests), wanted, strict=True):
        if made.ids != written[: len(made.ids)]:
            return "tokens"
    return ""


def alignment(base: Backbone) -> Alignment:
    """Compare a padded batch, longer than any window, with plain forwards of its rows."""
    words = PromptSettings()
    prompts = [base.prompts.with_knowledge(question, words) for question in QUESTIONS]
    rows = [Row(p, base.prompts.answer(a), []) for p, a in zip(prompts, ANSWERS, strict=True)]
    torch.manual_seed(0)
    ours = (0.3 * torch.randn(len(rows), 2, base.width)).requires_grad_()
    plain = ours.detach().clone().requires_grad_()
    reader = Reader(base, rows)
    reader.keep_questions(rows[:1], 10**9, 1)
    states = reader.read(ours, rows)
    loss = label_loss(base, states.before, states.labels)
    loss.backward()
    true = torch.zeros(())
    for i, row in enumerate(rows):
        embeds = torch.cat([inject(base, row.prompt, plain[i]), base.embed(row.answer[:-1])])[None]
        logits = base.model(inputs_embeds=embeds).logits[0, -len(row.answer) :]
        labels = torch.tensor(row.answer)
        true = true + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    true.backward()
    apart = float((_grad(ours) - _grad(plain)).norm() / _grad(plain).norm())
    return Alignment(abs(loss.item() - true.item()) / true.item(), apart)


def through_all_verbs(project: Project) -> None:
    """Plan, build, ask, evaluate with evidence, and verify the domain `m`."""
    with contextlib.redirect_stderr(io.StringIO()):
        plan(project, "m")
        build(project, ["m"])
        answer = GAG.open(project).ask("What is in sample number 3?", "m")
        _need(answer.tokens_added == project.settings.readout.slots, "vectors in the answer's prompt")
        summary = evaluate(project, "all", read_test_rows(project, ["general", "m"]), evidence=True)
        _need(summary.questions > 0, "questions in the summary")
        _need(verify_domains(project, []) == ["m"], "a domain that is verified")


def _need(held: bool, what: str) -> None:
    if not held:
        raise AssertionError(f"expected {what}")


def _grad(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.grad is None:
        raise AssertionError("expected a gradient")
    return tensor.grad


def write_project(root: Path, family: str, tuning: str = "lora", **changes: Any) -> Path:
    """Write a project of twelve rows with a base and an expert of a family."""
    for role, width, seed in (("base", 32, 0), ("expert", 24, 1)):
        write_model(family, root / "models" / role, width, seed)
    return write_rows_and_settings(root, tuning, **changes)


def write_rows_and_settings(root: Path, tuning: str = "lora", **changes: Any) -> Path:
    """Write rows and gag.yaml beside a project's models; `changes` are laid over groups of settings."""
    ways = ("What", "Which of the many substances that were named before")
    rows = [
        {"question": f"{way} is in sample number {i}?", "answer": value, "group": value}
        for i, value in enumerate(VALUES)
        for way in ways
    ]
    general = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(6)]
    for name, part in {"m": rows[:12], "m-test": rows[12:], "general": general}.items():
        write_rows(root / "data" / f"{name}.jsonl", part)
    settings: dict[str, Any] = {
        "base": {"model": "models/base"},
        "expert": {"model": "models/expert"},
        "general": {"questions": "data/general.jsonl", "test": "data/general.jsonl"},
        "router": {"centres": 3},
        "adapt": {
            "tuning": tuning, "rank": 4, "epochs": 1, "batch_size": 4, "micro_batch_size": 4,
            "learning_rate": 0.01,
        },
        "readout": {"layers": [-1], "pooling": "mean", "max_new_tokens": 4, "batch_tokens": 400},
        "align": {"epochs": 2, "batch_size": 4},
        "decoding": {"max_new_tokens": 4, "batch_size": 3},
        "evaluation": {
            "metrics": {"*": ["contains", "f1"]}, "bertscore": "expert", "similarity": "expert",
        },
        "domains": {
            "m": {
                "train": "data/m.jsonl",
                "test": "data/m-test.jsonl",
                "prompts": {"expert": "Say.", "answer": "Tell."},
            }
        },
    }  # fmt: skip
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    (root / "gag.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


def tuned(root: Path, tuning: str) -> str:
    """Go through all verbs with a kind of tuning; return the refusal, if there is one."""
    for made in ("runs", "domains", "general", "router"):
        shutil.rmtree(root / made, ignore_errors=True)
    try:
        through_all_verbs(load_project(root, (f"adapt.tuning={json.dumps(tuning)}",)))
    except GagError as error:
        return " ".join(str(error).split())
    return ""

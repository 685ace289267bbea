"""Baselines that change something for the domain: the base tuned with LoRA, and a trained prefix (prompt tuning)."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gag.evaluation.answers import decoded
from gag.evaluation.metrics import contains
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone
from gag.models.experts import Experts
from gag.project.artifacts import is_current, read_manifest, writing
from gag.project.inputs import adapt_file, alignment_rows
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import Example, digest, read_examples
from gag.project.run import Run
from gag.projection.trainer import linear_schedule
from gag.project.keys import model_key, stage_key
from gag.project.tensors import load_tensors, save_tensors
from gag.projection.alignment import Reader, Row
from gag.projection.injection import inject
from gag.projection.losses import label_loss
from gag.training.sft import Tuning, tune

LORA_RATES = (1e-3, 3e-3)
PREFIX_RATES = (3e-3, 3e-2)
PREFIX_TOKENS, PREFIX_EPOCHS, PREFIX_BATCH = 16, 3, 32
WEIGHTS = "prefix.safetensors"
VAL_QUESTIONS = 100


@dataclass(frozen=True)
class Built:
    """What a baseline cost: its folder, seconds of the chosen run, and what chose it."""

    folder: Path
    seconds: float
    chosen_by: dict[str, float]  # of each learning rate, on validation rows


def tune_base(project: Project, domain: str, base: Backbone, quick: bool) -> Built:
    """Tune the base with LoRA on the rows that teach the expert; the rate that answers most validation rows is kept."""
    target = project.run(domain, "compare") / "lora"
    val = alignment_rows(project, domain)["val"]
    held = {
        example.question for example in val
    }  # with one file for all, the validation rows choose and teach nothing
    examples = [
        example for example in read_examples(adapt_file(project, domain)) if example.question not in held
    ]
    rates = LORA_RATES[:1] if quick else LORA_RATES
    settings = project.settings.adapt.model_copy(
        update={"tuning": "lora"} | ({"epochs": 1.0} if quick else {})
    )
    key = stage_key(data=digest(adapt_file(project, domain)), base=model_key(project.settings.base, project.root),
                    settings=settings.model_dump(), rates=rates, new=budget(project), val=_named(val))  # fmt: skip
    if not is_current(target, key):
        right, seconds, folders = {}, {}, {}
        run = Run(target.with_name("lora.unfinished"), {"key": key})
        for rate in rates:
            started = time.monotonic()
            chosen = settings.model_copy(update={"learning_rate": rate})
            rows = [_row(base, example) for example in examples]
            tuning = Tuning(
                f"rate-{rate:g}", f"tune the base, {rate:g}", chosen, rows, model=project.settings.base
            )
            folders[rate] = tune(project, run, tuning)
            seconds[rate] = time.monotonic() - started
            right[rate] = _share_right(_loaded(project, folders[rate]), val[:VAL_QUESTIONS], budget(project))
            say(
                f"compare {domain}: base tuned at {rate:g}, {right[rate]:.3f} of validation right, {seconds[rate]:.0f} s"
            )
        best = max(right, key=lambda rate: right[rate])
        facts = {
            "key": key,
            "seconds": round(seconds[best], 1),
            "chosen_by": {f"{r:g}": round(x, 4) for r, x in right.items()},
        }
        with writing(target, facts) as temporary:
            for path in folders[best].iterdir():
                if path.name != "manifest.json":
                    (temporary / path.name).write_bytes(path.read_bytes())
        run.close()
    facts = read_manifest(target)
    return Built(target, facts["seconds"], facts["chosen_by"])


def budget(project: Project) -> int:
    """Return the tokens that a tuned base may write: the rows teach it to write as much as the expert does."""
    return max(project.settings.decoding.max_new_tokens, project.settings.readout.max_new_tokens)


def tuned_base(project: Project, built: Built) -> Backbone:
    """Load a copy of the base with the adapter on it."""
    return _loaded(project, built.folder)


def train_prefix(project: Project, domain: str, base: Backbone, quick: bool) -> Built:
    """Train vectors that stand in every question's knowledge place, on the rows of alignment."""
    target = project.run(domain, "compare") / "prefix"
    parts = alignment_rows(project, domain)
    rates, epochs = (PREFIX_RATES[:1], 1) if quick else (PREFIX_RATES, PREFIX_EPOCHS)
    instruction, seed = project.described(domain).prompts.answer, project.settings.align.seed
    key = stage_key(rows=_named(parts["align"]), val=_named(parts["val"]), rates=rates, epochs=epochs,
                    instruction=instruction, seed=seed,
                    base=model_key(project.settings.base, project.root))  # fmt: skip
    if not is_current(target, key):
        rows, val = ([_knowledge_row(base, e, instruction) for e in parts[p]] for p in ("align", "val"))
        reader = Reader(base, rows[0].prompt)
        losses, found, seconds = {}, {}, {}
        for rate in rates:
            started = time.monotonic()
            found[rate] = _trained(base, reader, rows, rate, epochs, seed)
            seconds[rate] = time.monotonic() - started
            losses[rate] = _prefix_loss(base, reader, found[rate], val)
            say(
                f"compare {domain}: prefix at {rate:g}, validation loss {losses[rate]:.3f}, {seconds[rate]:.0f} s"
            )
        best = min(losses, key=lambda rate: losses[rate])
        facts = {
            "key": key,
            "seconds": round(seconds[best], 1),
            "chosen_by": {f"{r:g}": round(x, 4) for r, x in losses.items()},
        }
        with writing(target, facts) as temporary:
            save_tensors(temporary / WEIGHTS, {"prefix": found[best]})
    facts = read_manifest(target)
    return Built(target, facts["seconds"], facts["chosen_by"])


def prefix_rows(base: Backbone, built: Built, questions: list[str], instruction: str) -> list[torch.Tensor]:
    """Embed questions around the trained prefix, each [T, Db]."""
    prefix = load_tensors(built.folder / WEIGHTS)["prefix"].to(base.device)
    return [
        inject(base, base.prompts.with_knowledge(question, instruction), prefix) for question in questions
    ]


def _trained(
    base: Backbone, reader: Reader, rows: list[Row], rate: float, epochs: int, seed: int
) -> torch.Tensor:
    """Train one prefix [P, Db], from embeddings drawn from the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = base.model.get_input_embeddings().weight  # pyright: ignore[reportAttributeAccessIssue]
    drawn = torch.randint(len(embeddings), (PREFIX_TOKENS,), generator=generator)  # pyright: ignore[reportArgumentType]
    prefix = torch.nn.Parameter(embeddings[drawn.to(base.device)].detach().float().clone())  # pyright: ignore[reportIndexIssue]
    optimizer = torch.optim.AdamW([prefix], lr=rate, weight_decay=0.0)
    batches = max(1, len(rows) // PREFIX_BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(epochs * batches, 0.03))
    with bar(f"prefix, {rate:g}", epochs * batches) as advance:
        for _ in range(epochs):
            order = torch.randperm(len(rows), generator=generator).tolist()
            for start in range(0, batches * PREFIX_BATCH, PREFIX_BATCH):
                chosen = [rows[i] for i in order[start : start + PREFIX_BATCH]]
                states = reader.read(prefix.expand(len(chosen), -1, -1), chosen)
                loss = label_loss(base, states.before, states.labels) / len(states.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
    return prefix.detach()


@torch.no_grad()
def _prefix_loss(base: Backbone, reader: Reader, prefix: torch.Tensor, rows: list[Row]) -> float:
    total, count = 0.0, 0
    for start in range(0, len(rows), PREFIX_BATCH):
        chosen = rows[start : start + PREFIX_BATCH]
        states = reader.read(prefix.expand(len(chosen), -1, -1), chosen)
        total += float(label_loss(base, states.before, states.labels))
        count += len(states.labels)
    return total / count


def _named(examples: list[Example]) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.question, example.answers) for example in examples]


def _knowledge_row(base: Backbone, example: Example, instruction: str) -> Row:
    prompts = base.prompts
    return Row(prompts.with_knowledge(example.question, instruction), prompts.answer(example.answers[0]), [])


def _row(base: Backbone, example: Example) -> dict[str, list[int]]:
    """Encode a row as the base is asked: the plain prompt, with labels on the answer."""
    prompt, answer = base.prompts.plain(example.question), base.prompts.answer(example.answers[0])
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def _loaded(project: Project, folder: Path) -> Backbone:
    tuned = Experts(load_backbone(project.settings.base, project.root))
    tuned.load("tuned", folder)
    model: Any = tuned.backbone.model
    model.enable_adapters()
    return tuned.backbone


def _share_right(model: Backbone, examples: list[Example], new: int) -> float:
    prompts = [model.embed(model.prompts.plain(example.question)) for example in examples]
    texts = decoded(model, prompts, new)
    return sum(contains(text, example.answers) for text, example in zip(texts, examples, strict=True)) / len(
        examples
    )

"""Baselines that train something for the domain: the base tuned with LoRA, and a prefix (prompt tuning)."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from gag.errors import DataError
from gag.evaluation.answers import decoded
from gag.evaluation.metrics import share_right
from gag.models.backbone import Backbone
from gag.models.experts import Experts
from gag.models.loading import load_backbone
from gag.project.artifacts import MANIFEST, is_current, read_manifest, writing
from gag.project.hyperparameters import AdaptSettings
from gag.project.keys import model_key, stage_key
from gag.project.memory import peak_bytes
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import Example, digest
from gag.project.run import Run
from gag.project.settings import PromptSettings
from gag.project.tensors import load_tensors, save_tensors
from gag.projection.alignment import Reader, Row
from gag.projection.injection import inject
from gag.projection.losses import label_loss
from gag.projection.trainer import linear_schedule
from gag.training.sft import Tuning, tune

LORA_RATES = (1e-3, 3e-3)
PREFIX_RATES = (3e-3, 3e-2)
PREFIX_TOKENS, PREFIX_EPOCHS, PREFIX_BATCH = 16, 3, 32
WEIGHTS = "prefix.safetensors"
VAL_QUESTIONS = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Baseline:
    """A baseline that was trained, and what its chosen run cost."""

    folder: Path
    seconds: float
    peak_bytes: int | None  # of the process; None: not recorded
    chosen_by: dict[str, float]  # of each learning rate, on validation rows


@dataclass(frozen=True)
class Trial(Generic[T]):
    """What one learning rate made."""

    rate: float
    trained: T
    score: float  # on validation rows
    seconds: float


def tune_base(project: Project, domain: str, base: Backbone, quick: bool) -> Baseline:
    """Tune the base with LoRA on the rows that teach the expert, or take what stands of the same inputs.

    The learning rate that answers most validation rows is kept.
    """
    target = project.run(domain, "compare") / "lora"
    inputs = project.inputs(domain)
    val = inputs.splits.val
    rates = LORA_RATES[:1] if quick else LORA_RATES
    changes = {"tuning": "lora"} | ({"epochs": 1.0} if quick else {})
    settings = project.settings.adapt.changed(**changes)
    key = stage_key(
        data=digest(inputs.adapt),
        base=inputs.base_key,
        settings=settings.key(),
        rates=rates,
        new=answer_budget(project),
        val=_named(val),
    )
    if not is_current(target, key):
        run = Run(target.with_name("lora.unfinished"), {"key": key})
        rows = _tuning_rows(project, domain, base, val)
        trials = [_tune_at(project, domain, run, settings, rate, rows, val) for rate in rates]
        best = max(trials, key=lambda trial: trial.score)
        with writing(target, _facts(key, best, trials)) as temporary:
            _copy_adapter(best.trained, temporary)
        run.close()
    return _read(target)


def train_prefix(project: Project, domain: str, base: Backbone, quick: bool) -> Baseline:
    """Train vectors that stand in every question's knowledge place, or take what stands of the same inputs.

    They learn on the rows of alignment; the learning rate of the least validation loss is kept (prompt
    tuning, Lester et al. 2021).
    """
    target = project.run(domain, "compare") / "prefix"
    inputs = project.inputs(domain)
    align_rows = [example for example in inputs.splits.align if example.answers]
    val_rows = inputs.splits.val
    if not align_rows:
        raise DataError(f"no align row of {domain} has an answer; leave the method prefix out (--methods)")
    rates, epochs = (PREFIX_RATES[:1], 1) if quick else (PREFIX_RATES, PREFIX_EPOCHS)
    words, seed = project.described(domain).prompts, project.settings.align.seed
    key = stage_key(
        rows=_named(align_rows),
        val=_named(val_rows),
        rates=rates,
        epochs=epochs,
        words=words.around(),
        seed=seed,
        base=model_key(project.settings.base, project.root),
    )
    if not is_current(target, key):
        align, val = ([_knowledge_row(base, e, words) for e in rows] for rows in (align_rows, val_rows))
        trials = [_prefix_at(domain, base, align, val, rate, epochs, seed) for rate in rates]
        best = min(trials, key=lambda trial: trial.score)
        with writing(target, _facts(key, best, trials)) as temporary:
            save_tensors(temporary / WEIGHTS, {"prefix": best.trained})
    return _read(target)


def answer_budget(project: Project) -> int:
    """Return the tokens that a tuned base may write: its rows teach it to write as much as the expert."""
    return max(project.settings.decoding.max_new_tokens, project.settings.readout.max_new_tokens)


def tuned_base(project: Project, built: Baseline) -> Backbone:
    """Load a copy of the base with the adapter on it."""
    return _with_adapter(project, built.folder)


def prefix_rows(
    base: Backbone, built: Baseline, questions: list[str], words: PromptSettings
) -> list[torch.Tensor]:
    """Embed questions around the trained prefix, each [T, Db]."""
    prefix = load_tensors(built.folder / WEIGHTS)["prefix"].to(base.device)
    return [inject(base, base.prompts.with_knowledge(question, words), prefix) for question in questions]


def _trained(
    base: Backbone, reader: Reader, rows: list[Row], rate: float, epochs: int, seed: int
) -> torch.Tensor:
    """Train one prefix [P, Db], from embeddings drawn from the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(base.table), (PREFIX_TOKENS,), generator=generator)
    prefix = torch.nn.Parameter(base.embed(drawn.tolist()).float().clone())
    optimizer = torch.optim.AdamW([prefix], lr=rate, weight_decay=0.0)
    batches = max(1, len(rows) // PREFIX_BATCH)
    steps = epochs * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, steps, 0.03))
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


def _tuning_rows(
    project: Project, domain: str, base: Backbone, val: list[Example]
) -> list[dict[str, list[int]]]:
    """Encode the expert's rows for the base; with one file for all, the validation rows teach it nothing."""
    held_out = {example.question for example in val}
    examples = project.inputs(domain).taught
    return [_tuning_row(base, example) for example in examples if example.question not in held_out]


def _tuning_row(base: Backbone, example: Example) -> dict[str, list[int]]:
    """Encode a row as the base is asked: the plain prompt, with labels on the answer."""
    prompt, answer = base.prompts.plain(example.question), base.prompts.answer(example.answers[0])
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def _tune_at(
    project: Project,
    domain: str,
    run: Run,
    settings: AdaptSettings,
    rate: float,
    rows: list[dict[str, list[int]]],
    val: list[Example],
) -> Trial[Path]:
    """Tune the base at one learning rate; the score is the share of validation rows that it answers right."""
    started = time.monotonic()
    chosen = settings.changed(learning_rate=rate)
    tuning = Tuning(f"rate-{rate:g}", f"tune the base, {rate:g}", chosen, rows)
    folder = tune(project.settings.base, project.root, run, tuning)
    seconds = time.monotonic() - started
    right = _val_right(_with_adapter(project, folder), val[:VAL_QUESTIONS], answer_budget(project))
    say(f"compare {domain}: base tuned at {rate:g}, {right:.3f} of validation right, {seconds:.0f} s")
    return Trial(rate, folder, right, seconds)


def _val_right(model: Backbone, examples: list[Example], max_new_tokens: int) -> float:
    prompts = [model.embed(model.prompts.plain(example.question)) for example in examples]
    return share_right(decoded(model, prompts, max_new_tokens), [example.answers for example in examples])


def _prefix_at(
    domain: str, base: Backbone, align: list[Row], val: list[Row], rate: float, epochs: int, seed: int
) -> Trial[torch.Tensor]:
    """Train a prefix at one learning rate; the score is its validation loss per token."""
    reader = Reader(base, align + val)
    started = time.monotonic()
    prefix = _trained(base, reader, align, rate, epochs, seed)
    seconds = time.monotonic() - started
    loss = _prefix_loss(base, reader, prefix, val)
    say(f"compare {domain}: prefix at {rate:g}, validation loss {loss:.3f}, {seconds:.0f} s")
    return Trial(rate, prefix, loss, seconds)


def _facts(key: str, best: Trial[T], trials: list[Trial[T]]) -> dict[str, Any]:
    """Return what a baseline's manifest says."""
    return {
        "key": key,
        "seconds": round(best.seconds, 1),
        "peak_bytes": peak_bytes(),
        "chosen_by": {f"{trial.rate:g}": round(trial.score, 4) for trial in trials},
    }


def _read(folder: Path) -> Baseline:
    facts = read_manifest(folder)
    return Baseline(folder, facts["seconds"], facts.get("peak_bytes"), facts["chosen_by"])


def _copy_adapter(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.name != MANIFEST:
            shutil.copyfile(path, target / path.name)


def _named(examples: list[Example]) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.question, example.answers) for example in examples]


def _knowledge_row(base: Backbone, example: Example, words: PromptSettings) -> Row:
    prompts = base.prompts
    return Row(prompts.with_knowledge(example.question, words), prompts.answer(example.answers[0]), [])


def _with_adapter(project: Project, folder: Path) -> Backbone:
    tuned = Experts(load_backbone(project.settings.base, project.root))
    tuned.load("tuned", folder)
    model: Any = tuned.backbone.model
    model.enable_adapters()
    return tuned.backbone

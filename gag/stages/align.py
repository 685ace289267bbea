"""Stage II: train a domain's projector so that the frozen base answers from its vectors.

The run goes on exactly where a kill left it: each epoch's order and each step's noise come from the seed and their
number alone, and a checkpoint holds the rest.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gag.engine.domain import PROJECTOR
from gag.errors import DataError, MismatchError
from gag.models.backbone import Backbone, load_backbone
from gag.project import distributed
from gag.project.artifacts import load_tensors, save_tensors, writing
from gag.project.inputs import alignment_rows
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import Example
from gag.project.run import Run, is_done, linear_schedule, model_key, stage_key
from gag.project.settings import AlignSettings, ReadoutSettings
from gag.projection.alignment import Reader, Row
from gag.projection.losses import SemanticHead, diversity_loss, label_loss, semantic_loss
from gag.projection.projector import Projector, make_projector
from gag.readout.store import StoredReadouts, read_store
from gag.stages import readouts
from gag.stages.meaning import gold_meanings
from gag.training.report import curves, write_report

_COUNTERS = ("total", "count", "best_loss", "best_step", "unimproved")


@dataclass(frozen=True)
class Split:
    """Rows of a split with their slots, in one order."""

    rows: list[Row]
    slots: torch.Tensor  # [N, S, L, De]
    meanings: torch.Tensor | None = None  # [N, E], of the gold answers


def inputs(project: Project, domain: str) -> dict[str, Any]:
    """Name what the projector is made from."""
    return {
        "readouts": readouts.key(project, domain),
        "settings": project.settings.align.model_dump(exclude={"checkpoint_steps"}),
        "base": model_key(project.settings.base, project.root),
        "prompt": project.described(domain).prompts.answer,
    }


def key(project: Project, domain: str) -> str:
    """Name the projector by what it is made from."""
    return stage_key(**inputs(project, domain))


def align(project: Project, domain: str) -> Path:
    """Train the projector of a domain on its stored readouts; return the folder with the best one."""
    folder, unfinished = project.run(domain, "align"), project.run(domain, "align.unfinished")
    settings, wanted = project.settings.align, inputs(project, domain)
    if is_done(folder, stage_key(**wanted), unfinished):
        say(f"align {domain}: already there")
        return folder
    started = time.monotonic()
    base = load_backbone(project.settings.base, project.root)
    examples = alignment_rows(project, domain)
    stored = {
        name: read_store(project.run(domain, "readouts") / name, readouts.key(project, domain))
        for name in examples
    }
    instruction = project.described(domain).prompts.answer
    splits = {
        name: _split(base, instruction, examples[name], stored[name], settings.distill > 0)
        for name in examples
    }
    if settings.semantic:
        splits["align"] = _with_meanings(splits["align"], examples["align"], project)
    run = Run(unfinished, wanted, project.settings.tracking)
    projector, val_loss = train_projector(
        base, splits["align"], splits["val"], settings, run, f"align {domain}"
    )
    seconds = round(time.monotonic() - started, 1)
    if distributed.rank() == 0:
        facts = {
            "key": stage_key(**wanted),
            "rows": len(splits["align"].rows),
            "base": base.facts.model_dump(),
            "expert": stored["align"].facts["expert"],
            "settings": settings.model_dump(),
            "precision": str(base.model.dtype).removeprefix("torch."),
            "val_loss": val_loss,
            "seconds": seconds,
        }
        with writing(folder, facts) as temporary:
            save_tensors(temporary / PROJECTOR, dict(projector.state_dict()))
            shutil.copy(run.log, temporary)
            told = {name: facts[name] for name in ("rows", "val_loss", "seconds", "precision", "settings")}
            write_report(temporary, f"align {domain}", told, curves(run.log, ("loss", "val_loss")))
    run.close()
    say(f"align {domain}: {len(splits['align'].rows)} rows, validation loss {val_loss:.3f}, {seconds:.0f} s")
    return folder


def train_projector(
    base: Backbone, train: Split, val: Split, settings: AlignSettings, run: Run, label: str = "align"
) -> tuple[Projector, float]:
    """Train on the rows, validate after each epoch, and return the best projector with its validation loss."""
    trainer = _Trainer(base, train, val, settings, run)
    trainer.resume()
    with bar(label, trainer.steps) as advance:
        advance(trainer.step)
        while not trainer.finished:
            trainer.train_one_step()
            advance(1)
    return trainer.best()


def start_projector(base: Backbone, train: Split, settings: AlignSettings) -> Projector:
    """Start in closed form, towards the mean of the base's own embeddings of each answer, or at random."""
    torch.manual_seed(settings.seed)
    _, slots, layers, width = train.slots.shape
    projector = make_projector(settings.projector, (slots, layers, width), base.width)
    if settings.start != "random":
        targets = torch.stack([base.embed(row.answer[:-1]).float().mean(0) for row in train.rows]).cpu()
        begin: Any = getattr(projector, f"start_from_{settings.start}")
        begin(train.slots, targets)
    return projector


def mean_loss(
    reader: Reader, base: Backbone, projector: Projector, split: Split, micro_batch_size: int
) -> float:
    """Return the mean cross-entropy per answer token over a split, shared among the processes."""
    total = torch.zeros(2)
    with torch.no_grad():
        for chosen in _micro_batches(split, list(range(len(split.rows))), micro_batch_size):
            states = reader.read(
                projector(split.slots[chosen].to(base.device)), [split.rows[i] for i in chosen]
            )
            total += torch.tensor([label_loss(base, states.before, states.labels).item(), len(states.labels)])
    distributed.all_reduce([total])
    return float(total[0] / total[1])


@dataclass
class _Trainer:
    """The state of a training run, and one step of it."""

    base: Backbone
    train: Split
    val: Split
    settings: AlignSettings
    run: Run
    step: int = 0
    total: float = 0.0  # loss since the last validation, times rows
    count: int = 0  # rows since the last validation
    best_loss: float = float("inf")
    best_step: int = 0
    named_best: int = 0  # the best step when the last checkpoint was written
    unimproved: int = 0
    modules: torch.nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        self.projector = start_projector(self.base, self.train, self.settings)
        self.modules = torch.nn.ModuleDict({"projector": self.projector})
        if self.train.meanings is not None:
            self.modules["head"] = SemanticHead(self.base.width, self.train.meanings.shape[1])
        self.modules.to(self.base.device)
        self.reader = Reader(self.base, self.train.rows[0].prompt)
        if self.settings.cache_gb:
            budget = int(self.settings.cache_gb * 1e9)
            kept = self.reader.keep_questions(self.train.rows, budget, self.settings.micro_batch_size)
            say(f"  {kept} of {len(self.train.rows)} rows have their questions' keys and values kept")
        self.noise = self.settings.noise * self.train.slots.float().std((0, 1), correction=0)  # [L, De]
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.schedule = linear_schedule(self.steps, self.settings.warmup)

    @property
    def epoch_steps(self) -> int:
        return -(-len(self.train.rows) // self.settings.batch_size)

    @property
    def steps(self) -> int:
        return self.settings.steps or self.settings.epochs * self.epoch_steps

    @property
    def finished(self) -> bool:
        patience = self.settings.patience
        return self.step >= self.steps or (patience is not None and self.unimproved >= patience)

    def resume(self) -> None:
        """Go on from the newest checkpoint, or validate the start."""
        found = self.run.newest()
        if found is None:
            self._validate()
            return
        self.step = found.step
        for name in _COUNTERS:
            setattr(self, name, found.state[name])
        self.named_best = self.best_step
        with torch.no_grad():
            for name, parameter in self.modules.named_parameters():
                parameter.copy_(found.tensors[f"weight.{name}"])
                moments = {m: found.tensors[f"{m}.{name}"].to(parameter) for m in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}

    def train_one_step(self) -> None:
        """Take one optimiser step; at an epoch's end validate, and now and then write a checkpoint."""
        batch = self._batch()
        loss = self._accumulate(batch)
        if not torch.isfinite(loss):
            names = ", ".join(str(i) for i in batch[:8])
            raise DataError(
                f"the loss is {loss.item()} at step {self.step + 1} (align rows {names}, ...); "
                "lower align.learning_rate, or set align.clip: 1.0"
            )
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.schedule(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.total += loss.item() * len(batch)
        self.count += len(batch)
        if self.step % self.epoch_steps == 0 or self.step == self.steps:
            self._validate()
        if self.step % self.settings.checkpoint_steps == 0 and not self.finished:
            self._save()

    def best(self) -> tuple[Projector, float]:
        """Return the projector with the lowest validation loss."""
        self.projector.load_state_dict(load_tensors(self._best_file(self.best_step)))
        return self.projector, self.best_loss

    def _batch(self) -> list[int]:
        """Return the rows of this step, for all processes: the epoch's order depends on the seed and the epoch."""
        epoch, place = divmod(self.step, self.epoch_steps)
        order = torch.randperm(
            len(self.train.rows), generator=_generator(self.settings.seed, "epoch", epoch)
        ).tolist()
        return order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]

    def _accumulate(self, batch: list[int]) -> torch.Tensor:
        """Run this process's micro-batches forward and backward; leave the sum of all gradients; return the loss."""
        noisy = dict(zip(batch, self._noisy(batch), strict=True))
        tokens = sum(len(self.train.rows[i].answer) for i in batch)
        total = torch.zeros(())
        for chosen in _micro_batches(self.train, batch, self.settings.micro_batch_size):
            loss = self._loss(chosen, torch.stack([noisy[i] for i in chosen]), tokens, len(batch))
            loss.backward()
            total += loss.detach().cpu()
        for parameter in self.modules.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        distributed.all_reduce(
            [
                total,
                *(parameter.grad for parameter in self.modules.parameters() if parameter.grad is not None),
            ]
        )
        return total

    def _loss(self, chosen: list[int], slots: torch.Tensor, tokens: int, count: int) -> torch.Tensor:
        """Return these rows' share of the batch's loss: sums over the batch's answer tokens and rows."""
        settings, rows = self.settings, [self.train.rows[i] for i in chosen]
        vectors = self.projector(slots.to(self.base.device))  # [B, S, Db]
        states = self.reader.read(vectors, rows)
        taught = self.reader.read_text(rows) if settings.distill else None
        loss = label_loss(self.base, states.before, states.labels, taught, settings.distill) / tokens
        if self.train.meanings is not None:
            gold = self.train.meanings[chosen].to(vectors)
            loss = loss + settings.semantic * semantic_loss(self.modules["head"](states.mean), gold) / count
        if settings.diversity:
            loss = loss + settings.diversity * diversity_loss(vectors) / count
        return loss

    def _noisy(self, batch: list[int]) -> torch.Tensor:
        slots = self.train.slots[batch].float()
        if self.settings.noise == 0:
            return slots
        return slots + self.noise * torch.randn(
            slots.shape, generator=_generator(self.settings.seed, "noise", self.step)
        )

    def _validate(self) -> None:
        val_loss = mean_loss(self.reader, self.base, self.projector, self.val, self.settings.micro_batch_size)
        row = {"loss": self.total / self.count} if self.count else {}
        self.run.report({"step": self.step, **row, "val_loss": val_loss})
        self.total, self.count, self.unimproved = 0.0, 0, self.unimproved + 1
        if val_loss < self.best_loss:
            self._keep_best()
            self.best_loss, self.best_step, self.unimproved = val_loss, self.step, 0

    def _keep_best(self) -> None:
        """Write the best projector beside the checkpoints, which name it by its step."""
        if distributed.rank() == 0:
            fresh = self.run.folder / ".best.new"
            save_tensors(fresh, dict(self.projector.state_dict()))
            fresh.rename(self._best_file(self.step))
        distributed.barrier()

    def _best_file(self, step: int) -> Path:
        return self.run.folder / f"best-{step:08d}.safetensors"

    def _save(self) -> None:
        tensors = {}
        for name, parameter in self.modules.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"weight.{name}": parameter, f"exp_avg.{name}": state["exp_avg"]}
            tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
        self.run.save(self.step, tensors, {name: getattr(self, name) for name in _COUNTERS})
        if distributed.rank() == 0:
            named = {
                self._best_file(self.best_step),
                self._best_file(self.named_best),
            }  # by the two checkpoints that are kept
            for old in set(self.run.folder.glob("best-*")) - named:
                old.unlink()
        self.named_best = self.best_step


def _micro_batches(split: Split, chosen: list[int], size: int) -> Iterator[list[int]]:
    """Yield this process's rows in groups of like length."""
    order = sorted(chosen, key=lambda i: split.rows[i].length)
    mine = order[distributed.rank() :: distributed.world_size()]
    for start in range(0, len(mine), size):
        yield mine[start : start + size]


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    name = stage_key(seed=seed, what=what, number=number)
    return torch.Generator().manual_seed(int(name[:15], 16))


def _split(
    base: Backbone, instruction: str, examples: list[Example], stored: StoredReadouts, taught: bool
) -> Split:
    if stored.ids != [e.id for e in examples]:
        raise MismatchError("the readouts are of other rows than the data file's; run `gag readouts` again")
    width = ReadoutSettings(**stored.facts["settings"]).shape(stored.facts["expert"]["width"], base.width)[-1]
    if stored.slots.shape[-1] != width:
        raise MismatchError(
            f"the readouts are {stored.slots.shape[-1]} wide, not {width}; run `gag readouts` again"
        )
    rows = [
        Row(
            base.prompts.with_knowledge(e.question, instruction),
            base.prompts.answer(e.answers[0]),
            base.prompts.with_text(e.question, instruction, text) if taught else [],
        )
        for e, text in zip(examples, stored.texts, strict=True)
    ]
    return Split(rows, stored.slots)


def _with_meanings(split: Split, examples: list[Example], project: Project) -> Split:
    return Split(split.rows, split.slots, gold_meanings([e.answers[0] for e in examples], project))

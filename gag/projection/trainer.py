"""The training run of a projector: steps, validation, the best one, and checkpoints.

The run goes on exactly where a kill left it: each epoch's order and each step's noise come from the seed and
their number alone, and a checkpoint holds the rest.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from gag.errors import DataError
from gag.models.backbone import Backbone
from gag.models.batching import length_batches
from gag.project import distributed
from gag.project.artifacts import replacing
from gag.project.hyperparameters import AlignSettings
from gag.project.progress import bar, say
from gag.project.run import Run
from gag.project.tensors import load_tensors, save_tensors
from gag.projection.alignment import Reader, Row, Split
from gag.projection.losses import SemanticHead, diversity_loss, label_loss, semantic_loss
from gag.projection.perturbation import Perturbation, seeded_generator
from gag.projection.projector import Projector
from gag.projection.start import new_projector, start_projector

LOGGED = 100  # rows of the log over a whole run, beside validation's


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    total: float = 0.0  # loss since the last row of the log, times rows
    count: int = 0  # rows since then
    best_loss: float = math.inf
    best_step: int = 0
    unimproved: int = 0  # validations since the best one


def train_projector(
    base: Backbone, train: Split, val: Split, settings: AlignSettings, run: Run, label: str = "align"
) -> tuple[Projector, float]:
    """Train on the rows, validate after each epoch; return the best projector and its loss."""
    trainer = Trainer(base, train, val, settings, run)
    trainer.resume()
    with bar(label, trainer.steps) as advance:
        advance(trainer.progress.step)
        while not trainer.finished:
            trainer.train_one_step()
            advance(1)
    return trainer.best()


def mean_loss(reader: Reader, base: Backbone, projector: Projector, split: Split, batch_tokens: int) -> float:
    """Return the mean cross-entropy per answer token over a split, shared among the processes."""
    total = torch.zeros(2)
    with torch.no_grad():
        for chosen in _micro_batches(split, list(range(len(split.rows))), batch_tokens):
            vectors = projector(split.slots[chosen].to(base.device))
            states = reader.read(vectors, [split.rows[i] for i in chosen])
            loss = label_loss(base, states.before, states.labels).item()
            total += torch.tensor([loss, len(states.labels)])
    distributed.all_reduce([total])
    return float(total[0] / total[1])


class Trainer:
    """The state of a training run, and one step of it."""

    def __init__(self, base: Backbone, train: Split, val: Split, settings: AlignSettings, run: Run):
        self.base, self.train, self.val, self.settings, self.run = base, train, val, settings, run
        self.progress = Progress()
        self.projector = new_projector(base, train, settings)
        self.modules = torch.nn.ModuleDict({"projector": self.projector})
        if train.meanings is not None:
            self.modules["head"] = SemanticHead(base.width, train.meanings.shape[1])
        self.reader = Reader(base, train.rows + val.rows)
        self.perturbation = Perturbation(base, train, settings)
        self._named_best = 0  # the best step when the last checkpoint was written

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.train.rows) // self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.steps or self.settings.epochs * self.epoch_steps

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or patience ran out."""
        patience = self.settings.patience
        return self.progress.step >= self.steps or (
            patience is not None and self.progress.unimproved >= patience
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint, or start and validate the start."""
        found = self.run.newest()
        if found is None:
            start_projector(self.projector, self.base, self.train, self.settings)
        self._prepare()
        if found is None:
            self._validate()
            return
        self.progress = Progress(found.step, **found.state)
        self._named_best = self.progress.best_step
        with torch.no_grad():
            for name, parameter in self.modules.named_parameters():
                parameter.copy_(found.tensors[f"weight.{name}"])
                moments = {m: found.tensors[f"{m}.{name}"].to(parameter) for m in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(found.step)), **moments}

    def train_one_step(self) -> None:
        """Take one optimiser step; at an epoch's end validate, and now and then write a checkpoint."""
        batch = self._batch()
        loss = self._accumulate(batch).item()  # the one time in a step that the host waits for the device
        self._check_finite(loss, batch)
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self._rate(self.progress.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        done = self.progress
        self.progress = replace(
            done,
            step=done.step + 1,
            total=done.total + loss * len(batch),
            count=done.count + len(batch),
        )
        self._report()
        if not self.finished and self.run.due(self.settings.checkpoint_minutes):
            self._save()

    def best(self) -> tuple[Projector, float]:
        """Return the projector with the lowest validation loss."""
        self.projector.load_state_dict(load_tensors(self._best_file(self.progress.best_step)))
        return self.projector, self.progress.best_loss

    def _prepare(self) -> None:
        settings = self.settings
        self.modules.to(self.base.device)
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        if settings.cache_gb:
            budget = int(settings.cache_gb * 1e9)
            kept = self.reader.keep_questions(self.train.rows, budget, settings.batch_tokens)
            say(f"  {kept} of {len(self.train.rows)} rows have their questions' keys and values kept")

    def _rate(self, step: int) -> float:
        return linear_schedule(step, self.steps, self.settings.warmup)

    def _batch(self) -> list[int]:
        """Return the rows of this step, for all processes.

        The epoch's order depends on the seed and the epoch.
        """
        epoch, place = divmod(self.progress.step, self.epoch_steps)
        generator = seeded_generator(self.settings.seed, "epoch", epoch)
        order = torch.randperm(len(self.train.rows), generator=generator).tolist()
        return order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]

    def _accumulate(self, batch: list[int]) -> torch.Tensor:
        """Run this process's micro-batches forward and backward; leave the sum of all gradients.

        Return the loss.
        """
        drawn = self.perturbation.draw(batch, self.progress.step)
        tokens = sum(len(self.train.rows[i].answer) for i in batch)
        total = torch.zeros((), device=self.base.device)
        for chosen in _micro_batches(self.train, batch, self.settings.batch_tokens):
            rows, slots = zip(*(drawn[i] for i in chosen), strict=True)
            loss = self._loss(chosen, list(rows), torch.stack(slots), tokens, len(batch))
            loss.backward()
            total += loss.detach()
        gradients = []
        for parameter in self.modules.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
        distributed.all_reduce([total, *gradients])
        return total

    def _loss(
        self, chosen: list[int], rows: list[Row], slots: torch.Tensor, tokens: int, count: int
    ) -> torch.Tensor:
        """Return these rows' share of the batch's loss: sums over the batch's answer tokens and rows."""
        settings = self.settings
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

    def _check_finite(self, loss: float, batch: list[int]) -> None:
        if not math.isfinite(loss):
            names = ", ".join(str(i) for i in batch[:8])
            raise DataError(
                f"the loss is {loss} at step {self.progress.step + 1} (align rows {names}, ...); "
                "lower align.learning_rate, or set align.clip: 1.0"
            )

    def _report(self) -> None:
        """Log the loss now and then; at an epoch's end validate."""
        step = self.progress.step
        if step % self.epoch_steps == 0 or step == self.steps:
            self._validate()
        elif step % max(1, self.steps // LOGGED) == 0:
            self._log({})

    def _log(self, more: dict[str, float]) -> None:
        done = self.progress
        row = {"loss": done.total / done.count} if done.count else {}
        self.run.report({"step": done.step, **row, **more})
        self.progress = replace(done, total=0.0, count=0)

    def _validate(self) -> None:
        tokens = self.settings.batch_tokens
        val_loss = mean_loss(self.reader, self.base, self.projector, self.val, tokens)
        if not math.isfinite(val_loss):
            raise DataError(
                f"the validation loss is {val_loss} at step {self.progress.step}: no projector can be "
                "chosen by it; "
                "lower align.learning_rate, or look at the validation rows"
            )
        self._log({"val_loss": val_loss})
        done = self.progress
        self.progress = replace(done, unimproved=done.unimproved + 1)
        if val_loss < done.best_loss:
            self._keep_best()
            self.progress = replace(done, best_loss=val_loss, best_step=done.step, unimproved=0)

    def _keep_best(self) -> None:
        """Write the best projector beside the checkpoints, which name it by its step."""
        if distributed.rank() == 0:
            with replacing(self._best_file(self.progress.step)) as fresh:
                save_tensors(fresh, dict(self.projector.state_dict()))
        distributed.barrier()

    def _best_file(self, step: int) -> Path:
        return self.run.folder / f"best-{step:08d}.safetensors"

    def _save(self) -> None:
        tensors = {}
        for name, parameter in self.modules.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"weight.{name}": parameter, f"exp_avg.{name}": state["exp_avg"]}
            tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
        state = asdict(self.progress)
        self.run.save(state.pop("step"), tensors, state)
        if distributed.rank() == 0:  # the two checkpoints that are kept name these
            named = {self._best_file(self.progress.best_step), self._best_file(self._named_best)}
            for old in set(self.run.folder.glob("best-*")) - named:
                old.unlink()
        self._named_best = self.progress.best_step


def linear_schedule(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate's factor at a step: up over the warm-up share, then straight down to 0."""
    rise = max(1, math.ceil(warmup * steps))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def _micro_batches(split: Split, chosen: list[int], tokens: int) -> Iterator[list[int]]:
    """Yield this process's rows in groups of like length, each within so many tokens and vectors."""
    order = sorted(chosen, key=lambda i: split.rows[i].length)
    mine = order[distributed.rank() :: distributed.world_size()]
    slots = split.slots.shape[1]
    rows = [split.rows[i] for i in mine]
    lengths = [max(row.length + slots, len(row.taught) + len(row.answer)) for row in rows]
    for batch in length_batches(lengths, tokens):
        yield [mine[i] for i in batch]

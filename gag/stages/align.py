"""Stage II: train a domain's projector so that the frozen base answers from its vectors.

The base never changes, and nothing before the first vector depends on the projector. So the instruction that all rows
share runs once, the questions run without gradient, and only what stands after a vector runs with gradient, with
logits at labels alone. The result equals the plain full forward.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from gag.artifacts import is_current, save_tensors, writing
from gag.backbone import Backbone, load_backbone, pad_left
from gag.config import AlignSettings, Project
from gag.data import alignment_rows
from gag.domain import PROJECTOR
from gag.errors import MismatchError
from gag.progress import bar, say
from gag.projector import Mlp
from gag.prompts import KnowledgePrompt
from gag.readout_store import StoredReadouts, read_store
from gag.records import Example
from gag.stages import readouts
from gag.training import append_log, linear_schedule, model_key, stage_key


@dataclass(frozen=True)
class Row:
    """A question around its vectors, and the answer to learn."""

    prompt: KnowledgePrompt
    answer: list[int]


@dataclass(frozen=True)
class Split:
    """Rows of a split with their slots, in one order."""

    rows: list[Row]
    slots: torch.Tensor  # [N, S, L, De]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[list[Row], torch.Tensor]]:
        """Yield (rows, slots) of each batch, shuffled if a generator is given."""
        count = len(self.rows)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for chosen in order.split(size):
            yield [self.rows[i] for i in chosen.tolist()], self.slots[chosen]


def key(project: Project, domain: str) -> str:
    """Name what the projector is made from."""
    return stage_key(
        readouts=readouts.key(project, domain),
        settings=project.settings.align.model_dump(),
        base=model_key(project.settings.base, project.root),
        prompt=project.described(domain).prompts.answer,
    )


def align(project: Project, domain: str) -> Path:
    """Train the projector of a domain on its stored readouts; return the folder with the best one."""
    folder = project.run(domain, "align")
    wanted = key(project, domain)
    if is_current(folder, wanted):
        say(f"align {domain}: already there")
        return folder
    started = time.monotonic()
    base = load_backbone(project.settings.base, project.root)
    instruction = project.described(domain).prompts.answer
    splits = alignment_rows(project, domain)
    stored = {name: read_store(project.run(domain, "readouts") / name, readouts.key(project, domain)) for name in splits}
    train, val = (_split(base, instruction, splits[name], stored[name]) for name in ("align", "val"))
    facts: dict[str, Any] = {
        "key": wanted,
        "rows": len(train.rows),
        "base": base.facts.model_dump(),
        "expert": stored["align"].facts["expert"],
    }
    with writing(folder, facts) as temporary:
        projector, facts["val_loss"] = train_projector(base, train, val, project.settings.align, temporary, f"align {domain}")
        save_tensors(temporary / PROJECTOR, dict(projector.state_dict()))
        facts["seconds"] = round(time.monotonic() - started, 1)
    say(f"align {domain}: {len(train.rows)} rows, validation loss {facts['val_loss']:.3f}, {facts['seconds']:.0f} s")
    return folder


def train_projector(
    base: Backbone, train: Split, val: Split, settings: AlignSettings, log: Path, label: str = "align"
) -> tuple[Mlp, float]:
    """Train on the rows, validate after each epoch, and return the best projector with its validation loss."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    projector = start_projector(base, train, settings).to(base.device)
    noise = settings.noise * train.slots.float().std((0, 1), correction=0)  # [L, De]
    steps = settings.epochs * -(-len(train.rows) // settings.batch_size)
    optimizer = torch.optim.AdamW(projector.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_schedule(steps, settings.warmup))
    loss_of = AlignmentLoss(base, train.rows[0].prompt)
    best, best_loss = copy.deepcopy(projector.state_dict()), loss_of.mean(projector, val, settings.batch_size)
    append_log(log / "log.jsonl", {"epoch": 0, "val_loss": best_loss})
    with bar(label, steps) as advance:
        for epoch in range(1, settings.epochs + 1):
            total = 0.0
            for rows, slots in train.batches(settings.batch_size, generator):
                noisy = slots + noise * torch.randn(slots.shape, generator=generator)
                loss = loss_of(projector(noisy.to(base.device)), rows)
                if not torch.isfinite(loss):
                    raise MismatchError(f"the loss is {loss.item()} in epoch {epoch}; lower align.learning_rate")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
                advance(1)
            val_loss = loss_of.mean(projector, val, settings.batch_size)
            append_log(log / "log.jsonl", {"epoch": epoch, "loss": total / len(train.rows), "val_loss": val_loss})
            if val_loss < best_loss:
                best, best_loss = copy.deepcopy(projector.state_dict()), val_loss
    projector.load_state_dict(best)
    return projector, best_loss


def start_projector(base: Backbone, train: Split, settings: AlignSettings) -> Mlp:
    """Start in closed form, towards the mean of the base's own embeddings of each answer, or at random."""
    projector = Mlp(train.slots.shape[-1], base.width)
    if settings.start == "ridge":
        targets = torch.stack([base.embed(row.answer[:-1]).float().mean(0) for row in train.rows]).cpu()
        projector.start_from_ridge(train.slots, targets)
    return projector


class AlignmentLoss:
    """Mean cross-entropy of the answers' tokens under the frozen base, given projected vectors."""

    def __init__(self, base: Backbone, prompt: KnowledgePrompt):
        self._base = base
        self._shared = prompt.shared
        with torch.no_grad():
            ids = torch.tensor([prompt.before[: prompt.shared]], device=base.device)
            prefix = base.model(ids, past_key_values=DynamicCache(config=base.model.config), use_cache=True, logits_to_keep=1)
        self._prefix = prefix.past_key_values

    def __call__(self, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        """Return the mean loss over the answers' tokens: vectors [B, S, Db] with B rows -> scalar."""
        cache, mask = self._run_questions(rows)
        closing = rows[0].prompt.after
        longest = max(len(row.answer) for row in rows)
        padded = [row.answer + [self._base.prompts.pad] * (longest - len(row.answer)) for row in rows]
        labels = torch.tensor([row.answer + [-100] * (longest - len(row.answer)) for row in rows], device=vectors.device)
        tokens = torch.stack([self._base.embed(closing + answer[:-1]) for answer in padded])
        embeds = torch.cat([vectors.to(tokens), tokens], 1)  # [B, S + closing + A - 1, Db]
        logits = self._base.model(
            inputs_embeds=embeds,
            attention_mask=torch.cat([mask, mask.new_ones(embeds.shape[:2])], 1),
            position_ids=mask.sum(1, keepdim=True) + torch.arange(embeds.shape[1], device=mask.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=longest,
        ).logits  # [B, A, V]
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    @torch.no_grad()
    def mean(self, projector: Mlp, split: Split, batch_size: int) -> float:
        """Return the mean loss per answer token over a split."""
        total, count = 0.0, 0
        for rows, slots in split.batches(batch_size):
            tokens = sum(len(row.answer) for row in rows)
            total += self(projector(slots.to(self._base.device)), rows).item() * tokens
            count += tokens
        return total / count

    @torch.no_grad()
    def _run_questions(self, rows: list[Row]) -> tuple[DynamicCache, torch.Tensor]:
        """Run what stands before the vectors; return its keys and values, and the mask over them [B, P + Q]."""
        cache = copy.deepcopy(self._prefix)
        cache.batch_repeat_interleave(len(rows))
        questions = pad_left([self._base.embed(row.prompt.before[self._shared :]) for row in rows])
        mask = torch.cat([questions.mask.new_ones(len(rows), self._shared), questions.mask], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, self._shared :]
        self._base.model(
            inputs_embeds=questions.embeds, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return cache, mask


def _split(base: Backbone, instruction: str, examples: list[Example], stored: StoredReadouts) -> Split:
    if stored.ids != [e.id for e in examples]:
        raise MismatchError("the readouts are of other rows than the data file's; run `gag readouts` again")
    prompts = base.prompts
    rows = [Row(prompts.with_knowledge(e.question, instruction), prompts.answer(e.answers[0])) for e in examples]
    return Split(rows, stored.slots)

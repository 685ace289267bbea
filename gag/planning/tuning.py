"""Stage I planned: TRL's training step on the expert, for a corpus of documents and for the domain's rows."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from gag.planning.metering import Meter, dry_run
from gag.planning.models import trained_bytes
from gag.planning.stages import ADAM, Stage, hold_gradients
from gag.planning.workload import Workload
from gag.training.lora import MOST_LOGITS

CHECKPOINTS = 3  # on disk at a time, at most
# TRL's loss makes logits for so many tokens, and so many entries of the vocabulary, at a time: a tile.
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768
CPU_TILES = 8.25  # float32 copies of a tile that a CPU holds, as measured; a GPU holds one in bfloat16
LOGITS = 3  # of the answers' places: as they are, their log-softmax, and its gradient


@dataclass(frozen=True)
class _Tuning:
    """The rows of a tuning, and one forward pass of it."""

    name: str
    rows: list[int]  # tokens of each
    reads: float  # of all rows, by all experts together
    shape: tuple[int, int]  # of a forward pass [B, T]
    learned: int  # of a pass's tokens, those that need logits
    accumulates: bool  # gradients of earlier passes are there


def corpus(work: Workload) -> Stage:
    """Plan the expert's pre-training on documents: packed to blocks, and a pass's blocks to one row."""
    group = work.settings.pretrain
    rows = [group.block_tokens] * math.ceil(work.corpus_tokens / group.block_tokens)
    batch = work.micro_batch(group, len(rows))
    tokens = batch.rows * group.block_tokens
    return _tune(work, _Tuning("corpus", rows, group.epochs, (1, tokens), tokens, batch.accumulates), {})


def adapt(work: Workload) -> Stage:
    """Plan the tuning of the expert, and with cross-fitting of one more for each fold, on the longest rows.

    Each of k experts of folds leaves out a k-th of the rows: with the domain's own, all are read k times.
    """
    group = work.settings.adapt
    rows = [min(tokens, group.max_tokens) for tokens in work.adapt.rows]
    batch = work.micro_batch(group, len(rows))
    answers = work.adapt.answers
    first = min(row - answer for row, answer in zip(work.adapt.rows, answers, strict=True))
    learned = {"cuda": max(answers), "cpu": max(rows) - first}.get(work.machine.kind, max(rows))
    tuning = _Tuning(
        name="adapt",
        rows=rows,
        reads=group.epochs * (work.folds or 1),
        shape=(batch.rows, max(rows)),
        learned=batch.rows * learned,
        accumulates=batch.accumulates,
    )
    return _tune(work, tuning, {"experts": work.expert_bytes * (1 + work.folds)})


def _tune(work: Workload, tuning: _Tuning, files: dict[str, int]) -> Stage:
    """Plan a tuning on one device of several like it; `files` are the bytes of what it leaves behind."""
    model = _trainable_expert(work)
    with dry_run(model) as meter:
        weights, trained = meter.live, trained_bytes(model)
        if tuning.accumulates:
            hold_gradients(model)
        _training_step(work, model, tuning, meter)
    exchanged = trained if work.machine.count > 1 else 0  # gradients, as devices send them to each other
    tokens = round(sum(tuning.rows) * tuning.reads)
    return Stage(
        name=tuning.name,
        rows=len(tuning.rows),
        tokens=tokens,
        weights=weights,
        peak=meter.peak + ADAM * trained + exchanged,
        seconds=work.computing(tokens, meter.flops, math.prod(tuning.shape)) / work.machine.count,
        disk={"checkpoints": CHECKPOINTS * (1 + ADAM) * trained} | files,
    )


def _trainable_expert(work: Workload) -> Any:
    """Build the expert as it is tuned: LoRA layers over a frozen backbone, or all weights in float32."""
    if work.rank:
        model: Any = work.expert.shell(rank=work.rank).model.train()
        model.enable_input_require_grads()
    else:
        model = work.expert.shell(torch.float32).model.train()
        model.requires_grad_(True)
    if (
        work.settings.adapt.gradient_checkpointing and model.supports_gradient_checkpointing
    ):  # by its new name, where transformers has that
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "preserve_rng_state": False})
    return model


def _training_step(work: Workload, model: Any, tuning: _Tuning, meter: Meter) -> None:
    """Run the decoder forward and backward; between them, the loss holds its logits."""
    rows, tokens = tuning.shape
    with torch.autocast("cpu", torch.bfloat16, enabled=work.machine.kind == "cuda"):
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        mask = torch.ones(rows, tokens, dtype=torch.long)
        decoder = model.base_model
        states = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        meter.hold_briefly(_loss_bytes(work, tuning))
    states.backward(torch.empty_like(states))


def _loss_bytes(work: Workload, tuning: _Tuning) -> int:
    """Return what the loss holds: logits, and float32 gradients of states and of a trained output layer."""
    tokens, logits = tuning.learned, tuning.learned * work.expert.vocabulary
    if work.machine.kind == "cpu" and tuning.name == "adapt" and logits <= MOST_LOGITS:
        return logits * torch.float32.itemsize * LOGITS  # gag.training.answer_loss
    if work.machine.kind == "cuda":
        entry = TILE_VOCABULARY * torch.bfloat16.itemsize
    else:
        entry = min(TILE_VOCABULARY, work.expert.vocabulary) * torch.float32.itemsize * CPU_TILES
    vectors = tokens + (0 if work.rank else work.expert.vocabulary)
    return round(min(tokens, TILE_TOKENS) * entry) + torch.float32.itemsize * work.expert.width * vectors

"""Stage II planned: the projector's training step (gag.projection.alignment) on the longest row."""

import torch

from gag.models.backbone import Backbone
from gag.planning.metering import Meter, dry_run
from gag.planning.models import trained_bytes
from gag.planning.passes import answer_states, blank, forward
from gag.planning.stages import ADAM, Stage, hold_gradients
from gag.planning.workload import Workload
from gag.projection.losses import SemanticHead, label_loss
from gag.projection.projector import Mlp, Projector, Residual

CHECKPOINTS = 2  # on disk at a time, each beside the best projector until then


class _Trained(torch.nn.Module):
    """What alignment trains: the projector, and for the semantic loss a small network of its own."""

    def __init__(self, work: Workload):
        super().__init__()
        self.projector = work.projector()
        self.semantic = None
        if work.settings.align.semantic:
            with torch.device("meta"):
                self.semantic = SemanticHead(work.base.width, work.expert.width)


def align(work: Workload) -> Stage:
    """Plan the training of the projector."""
    lengths, modules, base = work.align, _Trained(work), work.base.shell()
    batch, loaded = work.align_micro_batch(), _loaded(work)
    with dry_run(base.model, modules) as meter:
        trained = trained_bytes(modules)
        weights = meter.live - trained
        if batch.accumulates:
            hold_gradients(modules)
        before_training = _start(work, modules.projector, meter, loaded)
        started = meter.flops  # once, and in every step what comes now
        _training_step(work, base, modules, batch.rows)
    tokens = _tokens_read(work)
    metered = batch.rows * (lengths.longest_before + lengths.longest_answer)
    return Stage(
        name="align",
        rows=len(lengths.befores),
        tokens=tokens,
        weights=weights,
        peak=max(before_training, meter.peak + ADAM * trained),
        seconds=work.computing(tokens, meter.flops - started, metered) / work.machine.count,
        disk=_disk(work, trained),
    )


def _loaded(work: Workload) -> int:
    """Return the bytes of the models that are loaded before training."""
    encodes_meanings = work.settings.align.semantic and work.settings.align.semantic_encoder is None
    return work.base.size.bytes + (work.expert.size.bytes if encodes_meanings else 0)


def _start(work: Workload, projector: Projector, meter: Meter, loaded: int) -> int:
    """Return the peak bytes before training: models that are loaded, and a CPU's start of the projector."""
    if work.machine.kind != "cpu" or work.settings.align.start == "random":
        return loaded
    _start_in_closed_form(work, projector)
    return max(loaded, meter.restart_peak())


def _start_in_closed_form(work: Workload, projector: Projector) -> None:
    slots = torch.empty(work.align_rows, *work.slots)  # [N, S, L, De]
    targets = torch.empty(work.align_rows, work.base.width)  # [N, Db]
    if isinstance(projector, Residual):  # the settings allow no other start
        projector.start_from_identity(slots, torch.empty(work.base.width))
    elif work.settings.align.start == "identity" and not isinstance(projector, Mlp):
        projector.start_from_identity(slots, targets)
    else:
        projector.start_from_ridge(slots, targets)


def _training_step(work: Workload, base: Backbone, modules: _Trained, rows: int) -> None:
    """Run the longest rows forward, and the loss of their answers backward to the projector."""
    answer, distill = work.align.longest_answer, work.settings.align.distill
    states = _own_states(work, base, modules.projector, rows)  # [B, A, Db]
    taught = _taught_states(work, base, rows) if distill else None
    labels = torch.zeros(rows * answer, dtype=torch.long)
    loss = label_loss(base, states.flatten(0, 1), labels, taught, distill)
    meant = modules.semantic(states.float().mean(1)).sum() if modules.semantic else 0.0
    (loss + meant).backward()


def _own_states(work: Workload, base: Backbone, projector: Projector, rows: int) -> torch.Tensor:
    """Run the base on projected vectors -> the answers' states [B, A, Db]."""
    lengths = work.align
    vectors = projector(torch.empty(rows, *work.slots))  # [B, S, Db]
    behind = lengths.after + lengths.longest_answer - 1
    states = answer_states(base, vectors, lengths.shared, lengths.longest_before, behind)
    return states[:, -lengths.longest_answer :]


@torch.no_grad()
def _taught_states(work: Workload, base: Backbone, rows: int) -> torch.Tensor:
    """Run the base on the expert's text in place of the vectors -> the answers' states [B * A, Db]."""
    lengths, written = work.align, work.settings.readout.max_new_tokens
    tokens = lengths.longest_before + written + lengths.after + lengths.longest_answer
    return forward(base, blank(base, rows, tokens))[:, -lengths.longest_answer :].flatten(0, 1)


def _tokens_read(work: Workload) -> int:
    """Return the tokens of all steps: of questions and answers, at the rows' mean length."""
    settings, lengths = work.settings.align, work.align
    steps = settings.steps or settings.epochs * -(-work.align_rows // settings.batch_size)
    total = sum(lengths.befores) + sum(lengths.answers)
    return round(steps * settings.batch_size * total / len(lengths.befores))


def _disk(work: Workload, trained: int) -> dict[str, int]:
    """Return the bytes of the projector in float32 and in the base's type, and those of the checkpoints."""
    parameters = trained // torch.float32.itemsize
    return {
        "projector": trained + parameters * work.base.dtype.itemsize,
        "checkpoints": CHECKPOINTS * (1 + ADAM + 1) * trained,
    }

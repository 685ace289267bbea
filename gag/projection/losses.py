"""What alignment minimises: cross-entropy at labels in chunks, and the extra losses of v4.

Sums over rows, not means.
"""

from typing import Any

import torch
from torch import nn

from gag.models.backbone import Backbone

CHUNK = 512  # label positions whose logits exist at a time


def label_loss(
    base: Backbone,
    states: torch.Tensor,
    labels: torch.Tensor,
    taught: torch.Tensor | None = None,
    distill: float = 0.0,
) -> torch.Tensor:
    """Sum the cross-entropy of labels [N] under the frozen head of states [N, Db].

    With `taught` states [N, Db] of the same labels, add `distill` times KL(taught ‖ states) of each label's
    distribution. Logits exist for one chunk at a time, in the backward pass too.
    """
    return _ChunkedLoss.apply(states, labels, base, taught, distill)  # pyright: ignore[reportReturnType]


class _ChunkedLoss(torch.autograd.Function):
    """Find the gradient of the states chunk by chunk while the loss is summed: the head itself has none."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        labels: torch.Tensor,
        base: Backbone,
        taught: torch.Tensor | None,
        distill: float,
    ) -> torch.Tensor:
        total, gradients = states.new_zeros((), dtype=torch.float32), []
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            with torch.set_grad_enabled(states.requires_grad):
                chunk = states[part].detach().requires_grad_(states.requires_grad)
                logits = base.logits(chunk).float()
                loss = nn.functional.cross_entropy(logits, labels[part], reduction="sum")
                if taught is not None:
                    loss = loss + distill * _kl(base.logits(taught[part]).float().detach(), logits)
            if states.requires_grad:
                gradients += torch.autograd.grad(loss, chunk)
            total += loss.detach()
        if states.requires_grad:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None, None


def _kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    )


class SemanticHead(nn.Module):
    """Db -> Db -> width of the semantic encoder; trained beside the projector and thrown away."""

    def __init__(self, base_width: int, width: int):
        super().__init__()
        self.inner = nn.Linear(base_width, base_width)
        self.outer = nn.Linear(base_width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map mean answer states [B, Db] -> [B, E]."""
        return self.outer(nn.functional.gelu(self.inner(states.to(self.inner.weight))))


def semantic_loss(meant: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Sum 1 - cos over rows: [B, E], [B, E] -> scalar."""
    return (1 - nn.functional.cosine_similarity(meant, gold, dim=-1)).sum()


def diversity_loss(vectors: torch.Tensor) -> torch.Tensor:
    """Sum over rows the mean over i ≠ j of cos(z_i, z_j)²: [B, S, Db] -> scalar.

    A single slot costs nothing.
    """
    slots = vectors.shape[1]
    if slots == 1:
        return vectors.new_zeros(())
    unit = nn.functional.normalize(vectors, dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # [B, S, S]
    apart = cosines.square() * (1 - torch.eye(slots, device=vectors.device))
    return apart.sum() / (slots * (slots - 1))

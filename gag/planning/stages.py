"""What a plan says of a stage.

The stages are planned in `tuning.py` (corpus, adapt), `alignment.py` (align) and `reading.py` (readouts,
prototypes, ask). Each runs its heaviest batch dry, and scales that batch's operations to all of its tokens.
In a dry run the order of the lines is part of the result: what a name still holds counts as alive.
"""

from dataclasses import dataclass

import torch

ADAM = 2  # moments that the optimiser keeps of each trained weight


@dataclass(frozen=True)
class Stage:
    """A stage's needs: bytes on its fullest device, seconds, and bytes on disk by what they are."""

    name: str
    rows: int
    tokens: int
    weights: int  # bytes that stay from the start to the end
    peak: int
    seconds: float
    disk: dict[str, int]
    cure: str | None = None  # of a stage that does not fit: what to change


def hold_gradients(module: torch.nn.Module) -> None:
    """Make the gradients of what is trained, as earlier passes leave them."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)

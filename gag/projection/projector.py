"""The trained network from an expert's slots to the base's embedding space.

V1's mlp, v4's gated residual, and a residual that begins as the identity: of slots that the base can read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gag.errors import MismatchError

LIMIT = 10.0  # of normalised states and of mixing weights
ROWS = 4096  # of a closed-form start that stand in float64 at a time
Features = Callable[
    [torch.Tensor], torch.Tensor
]  # slots [R, S, L, De] -> what the linear path sees [R, S, De]


class Mlp(nn.Module):
    """v1: Linear(De -> Db), GELU, Linear(Db -> Db), on each slot of a single layer."""

    def __init__(self, expert_width: int, base_width: int):
        super().__init__()
        self.inner = nn.Linear(expert_width, base_width)
        self.outer = nn.Linear(base_width, base_width)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Project slots: [B, S, 1, De] -> [B, S, Db]."""
        if slots.shape[2] != 1:
            raise MismatchError(
                f"the mlp projector reads one layer, the readout has {slots.shape[2]}; set readout.layers"
            )
        features = slots[:, :, 0].to(self.inner.weight)
        return self.outer(nn.functional.gelu(self.inner(features)))

    @torch.no_grad()
    def start_from_ridge(self, slots: torch.Tensor, targets: torch.Tensor, penalty: float = 0.1) -> None:
        """Start as the ridge regression from standardised slots [N, S, 1, De] to targets [N, Db].

        GELU(a) - GELU(-a) = a, so pairs of opposed hidden units carry the strongest Db / 2 directions of the
        linear map exactly. `penalty` is in units of the features' variance.
        """
        ridge = _ridge(lambda part: part[:, :, 0], slots, targets, penalty)
        left, strength, right = torch.linalg.svd(ridge.solution, full_matrices=False)
        rank = min(self.inner.out_features // 2, len(strength))
        signs = torch.tensor([1.0, -1.0], dtype=left.dtype, device=left.device)
        inner = torch.kron(signs[:, None], left[:, :rank].T / ridge.spread)  # [2 rank, De]
        for parameter in self.outer.parameters():
            parameter.mul_(0.0)
        self.inner.weight[: 2 * rank] = inner.float()
        self.inner.bias[: 2 * rank] = (-inner @ ridge.mean).float()
        self.outer.weight[:, : 2 * rank] = torch.kron(signs[None], right[:rank].T * strength[:rank]).float()
        self.outer.bias[:] = ridge.goal.float()


class GatedResidual(nn.Module):
    """v4: a learned mix of layers per slot, a linear path, and an MLP through a gate.

    m = clamp(LayerNorm(slot), ±10);  f_s = Σ_l softmax(clamp(λ_s, ±10))_l m_{l,s};
    u = W LN(f) + b;  n = LN(u);  out = u + sigmoid(G n) ⊙ W2 GELU(W1 n).
    """

    def __init__(self, expert_width: int, base_width: int, slots: int, layers: int):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(slots, layers))  # λ
        self.norm_in = nn.LayerNorm(expert_width)
        self.linear = nn.Linear(expert_width, base_width)
        self.norm_out = nn.LayerNorm(base_width)
        self.gate = nn.Linear(base_width, base_width)
        self.inner = nn.Linear(base_width, base_width)
        self.outer = nn.Linear(base_width, base_width)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Project slots: [B, S, L, De] -> [B, S, Db]."""
        if slots.shape[1:3] != self.mix.shape:
            raise MismatchError(
                f"the projector takes {tuple(self.mix.shape)} slots and layers, the readout has "
                f"{tuple(slots.shape[1:3])}"
            )
        direct = self.linear(self.norm_in(self.mixed(slots)))
        n = self.norm_out(direct)
        return direct + torch.sigmoid(self.gate(n)) * self.outer(nn.functional.gelu(self.inner(n)))

    def mixed(self, slots: torch.Tensor) -> torch.Tensor:
        """Normalise each state once and mix the layers of each slot: [B, S, L, De] -> [B, S, De]."""
        states = nn.functional.layer_norm(slots.to(self.mix), slots.shape[-1:], eps=1e-6).clamp(-LIMIT, LIMIT)
        weights = self.mix.clamp(-LIMIT, LIMIT).softmax(-1)  # [S, L]
        return torch.einsum("bsld,sl->bsd", states, weights)

    @torch.no_grad()
    def start_from_ridge(self, slots: torch.Tensor, targets: torch.Tensor, penalty: float = 0.1) -> None:
        """Start the linear path as the ridge regression to targets [N, Db], the MLP at zero."""
        ridge = _ridge(lambda part: self.norm_in(self.mixed(part)), slots, targets, penalty)
        weight = ridge.solution / ridge.spread[:, None]  # [De, Db]
        self.linear.weight[:] = weight.T.float()
        self.linear.bias[:] = (ridge.goal - ridge.mean @ weight).float()
        self._silence()

    @torch.no_grad()
    def start_from_identity(self, slots: torch.Tensor, targets: torch.Tensor) -> None:
        """Start the linear path as the identity's nearest multiple to targets [N, Db], the MLP at zero."""
        if slots.shape[-1] != targets.shape[-1]:
            raise MismatchError(
                f"align.start identity needs slots in the base's space, {targets.shape[-1]} wide, not "
                f"{slots.shape[-1]}; "
                "set readout.space: vocabulary, or align.start: ridge"
            )
        features = self.norm_in(self.mixed(slots)).mean(1).double()  # [N, Db]
        mean, goal = features.mean(0), targets.double().mean(0)
        centred = features - mean
        scale = (centred * (targets - goal)).sum() / centred.square().sum().clamp_min(1e-12)
        self.linear.weight[:] = (scale * torch.eye(len(goal), device=scale.device)).float()
        self.linear.bias[:] = (goal - scale * mean).float()
        self._silence()

    def _silence(self) -> None:
        self.outer.weight.mul_(0.0)
        self.outer.bias.mul_(0.0)


class Residual(nn.Module):
    """Ours, for slots in the base's own embeddings: what is there, and a correction that starts at zero.

    out = slot + shift_s + W2 GELU(W1 LN(slot));  an unused slot, which is all zeros, gives a learned vector.
    """

    def __init__(self, width: int, slots: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.shift = nn.Parameter(torch.zeros(slots, width))
        self.unused = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Project slots: [B, S, 1, Db] -> [B, S, Db]."""
        features = slots[:, :, 0].to(self.shift)
        moved = features + self.shift + self.outer(nn.functional.gelu(self.inner(self.norm(features))))
        return torch.where(used(slots)[..., None], moved, self.unused)

    @torch.no_grad()
    def start_from_identity(self, slots: torch.Tensor, nothing: torch.Tensor) -> None:
        """Start as the identity, and in the unused slots with a vector [Db] that says nothing.

        The mean of all the base's tokens is such a one. That of the answers' tokens is not: where two of four
        slots were unused, the loss began at 5.3 in the place of 1.2.
        """
        if slots.shape[-1] != nothing.shape[-1]:
            raise MismatchError("the residual projector needs slots in the base's space; read them again")
        self.unused[:] = nothing


def used(slots: torch.Tensor) -> torch.Tensor:
    """Say which slots hold something: [B, S, L, D] -> [B, S]."""
    return (slots != 0).flatten(2).any(-1)


Projector = Mlp | GatedResidual | Residual


def make_projector(kind: str, shape: tuple[int, int, int], base_width: int) -> Projector:
    """Make a projector of a kind for slots [S, L, De], float32, with random weights."""
    slots, layers, expert_width = shape
    if kind == "mlp":
        return Mlp(expert_width, base_width)
    if kind == "gated_residual":
        return GatedResidual(expert_width, base_width, slots, layers)
    if kind == "residual":
        return Residual(base_width, slots)
    raise MismatchError(
        f"there is no projector {kind!r}, only mlp, gated_residual and residual; install the version that "
        "built it"
    )


@dataclass(frozen=True)
class _Ridge:
    solution: (
        torch.Tensor
    )  # [De, Db], on features from which `mean` is taken and which are divided by `spread`
    mean: torch.Tensor  # [De]
    spread: torch.Tensor  # [De]
    goal: torch.Tensor  # [Db], what the mean features give


def _ridge(features_of: Features, slots: torch.Tensor, targets: torch.Tensor, penalty: float) -> _Ridge:
    """Regress targets [N, Db] on standardised features [N, S, De], in float64, some rows at a time."""

    def rows() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(slots), ROWS):
            part = slice(start, start + ROWS)
            features = features_of(slots[part])  # [R, S, De]
            wanted = targets[part].double().repeat_interleave(features.shape[1], 0)
            yield features.flatten(0, 1).double(), wanted

    count = len(slots) * slots.shape[1]
    mean = torch.stack([x.sum(0) for x, _ in rows()]).sum(0) / count
    goal = torch.stack([wanted.sum(0) for _, wanted in rows()]).sum(0) / count
    squares = torch.stack([(x - mean).square().sum(0) for x, _ in rows()]).sum(0)
    spread = (squares / count).sqrt().clamp_min(1e-6)
    gram = penalty * count * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    product = mean.new_zeros(len(mean), len(goal))
    for x, wanted in rows():
        x = (x - mean) / spread
        gram += x.T @ x
        product += x.T @ (wanted - goal)
    return _Ridge(torch.linalg.solve(gram, product), mean, spread, goal)

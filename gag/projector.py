"""The trained network from an expert's slots to the base's embedding space, kept in float32."""

import torch
from torch import nn

from gag.errors import MismatchError


class Mlp(nn.Module):
    """v1: Linear(De -> Db), GELU, Linear(Db -> Db), on each slot of a single layer."""

    def __init__(self, expert_width: int, base_width: int):
        super().__init__()
        self.inner = nn.Linear(expert_width, base_width, dtype=torch.float32)
        self.outer = nn.Linear(base_width, base_width, dtype=torch.float32)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Project slots: [B, S, 1, De] -> [B, S, Db]."""
        if slots.shape[2] != 1:
            raise MismatchError(f"the mlp projector reads one layer, the readout has {slots.shape[2]}; set readout.layers")
        features = slots[:, :, 0].to(self.inner.weight)
        return self.outer(nn.functional.gelu(self.inner(features)))

    @torch.no_grad()
    def start_from_ridge(self, slots: torch.Tensor, targets: torch.Tensor, penalty: float = 0.1) -> None:
        """Start as the ridge regression from standardised slots [N, S, 1, De] to targets [N, Db].

        GELU(a) - GELU(-a) = a, so pairs of opposed hidden units carry the strongest Db / 2 directions of the linear
        map exactly. `penalty` is in units of the features' variance.
        """
        features = slots.flatten(0, 1)[:, 0].double()  # [N * S, De]
        wanted = targets.double().repeat_interleave(slots.shape[1], 0)
        mean, goal = features.mean(0), wanted.mean(0)
        spread = features.std(0, correction=0).clamp_min(1e-6)
        x = (features - mean) / spread
        gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        solution = torch.linalg.solve(gram, x.T @ (wanted - goal))  # [De, Db]
        left, strength, right = torch.linalg.svd(solution, full_matrices=False)
        rank = min(self.inner.out_features // 2, len(strength))
        project = left[:, :rank].T / spread  # [rank, De]
        signs = torch.tensor([1.0, -1.0], dtype=x.dtype, device=x.device)
        inner = torch.kron(signs[:, None], project)  # [2 rank, De]
        outer = torch.kron(signs[None], right[:rank].T * strength[:rank])  # [Db, 2 rank]
        for parameter in self.outer.parameters():
            parameter.mul_(0.0)
        self.inner.weight[: 2 * rank] = inner.float()
        self.inner.bias[: 2 * rank] = (-inner @ mean).float()
        self.outer.weight[:, : 2 * rank] = outer.float()
        self.outer.bias[:] = goal.float()

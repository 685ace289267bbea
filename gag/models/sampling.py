"""Sampling that depends on a seed and the question alone, not on the batch, the shard or the process."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are drawn.

    Temperature, then the likeliest `top_k`, then the least set over `top_p`.
    """

    temperature: float
    top_p: float
    top_k: int  # 0: all
    seed: int  # of its random numbers
    uniforms: torch.Tensor  # [new tokens], in [0, 1): these


def seeded(
    question: str, seed: int, count: int, temperature: float, top_p: float, top_k: int
) -> Sampling | None:
    """Return the sampling of a question, with random numbers for `count` tokens.

    None for temperature 0 (greedy).
    """
    if temperature == 0:
        return None
    name = hashlib.sha256(f"{seed}/{question}".encode()).digest()
    number = int.from_bytes(name[:8], "little") >> 1
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(number))
    return Sampling(temperature, top_p, top_k, number, uniforms)


def choose(logits: torch.Tensor, samplings: Sequence[Sampling | None], steps: Sequence[int]) -> torch.Tensor:
    """Choose each row's next token: the likeliest, or the one at which its number falls: [B, V] -> [B]."""
    chosen = logits.argmax(-1)
    groups: dict[tuple[float, float, int], list[int]] = {}
    for row, sampling in enumerate(samplings):
        if sampling is not None:
            groups.setdefault((sampling.temperature, sampling.top_p, sampling.top_k), []).append(row)
    for (temperature, top_p, top_k), rows in groups.items():
        uniforms = torch.stack([samplings[row].uniforms[steps[row]] for row in rows])  # pyright: ignore
        place = torch.tensor(rows, device=logits.device)
        chosen[place] = _sample(logits[place].float() / temperature, uniforms.to(logits.device), top_p, top_k)
    return chosen


def _sample(logits: torch.Tensor, uniforms: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Draw from what is kept of distributions [B, V] by one number each [B] -> [B].

    Sorting the kept `top_k` tokens alone costs a fraction of sorting the vocabulary.
    """
    kept = min(top_k, logits.shape[-1]) if top_k else logits.shape[-1]
    best = logits.topk(kept, dim=-1)  # sorted, likeliest first
    chances = best.values.softmax(-1)
    before = chances.cumsum(-1) - chances
    chances = torch.where(before < top_p, chances, 0.0)  # the least set whose probability reaches top_p
    wanted = uniforms[:, None] * chances.sum(-1, keepdim=True)
    place = (chances.cumsum(-1) <= wanted).sum(-1, keepdim=True).clamp_max(kept - 1)
    return best.indices.gather(1, place)[:, 0]

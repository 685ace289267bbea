"""Sampling that depends on a seed and the question alone, not on the batch, the shard or the process."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gag.project.settings import ReadoutSettings


@dataclass
class SeededSampler(LogitsProcessor):
    """Choose each row's next token with the row's own random numbers; greedy decoding then takes the chosen one."""

    uniforms: torch.Tensor  # [B, new tokens], in [0, 1)
    warpers: list[LogitsProcessor]

    def __call__(self, input_ids: Any, scores: Any) -> torch.Tensor:
        """Leave one token per row: the one at which the sorted distribution's running sum passes the row's number."""
        logits = scores.float()
        for warper in self.warpers:
            logits = warper(input_ids, logits)
        probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)  # [B, V]
        wanted = self.uniforms[:, input_ids.shape[1], None] * probabilities.sum(-1, keepdim=True)
        place = (probabilities.cumsum(-1) <= wanted).sum(-1, keepdim=True).clamp_max(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, order.gather(1, place), 0.0)


def seeded_sampler(
    questions: list[str], settings: ReadoutSettings, device: torch.device
) -> SeededSampler | None:
    """Return the sampler of a batch of questions, or None if decoding is greedy."""
    if settings.temperature == 0:
        return None
    rows = [
        torch.rand(settings.max_new_tokens, generator=_generator(settings.seed, question))
        for question in questions
    ]
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return SeededSampler(torch.stack(rows).to(device), warpers)


def _generator(seed: int, question: str) -> torch.Generator:
    name = hashlib.sha256(f"{seed}/{question}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(name[:8], "little") >> 1)

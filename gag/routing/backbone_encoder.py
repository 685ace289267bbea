"""The router's query encoder: the expert backbone as published, mean-pooled over the raw question."""

from dataclasses import dataclass
from typing import Protocol

import torch

from gag.models.backbone import Backbone, pad_left
from gag.project.settings import RouterSettings


@dataclass(frozen=True)
class EncoderSpec:
    """What makes two banks comparable; a bank of another encoder is refused."""

    fingerprint: str
    pooling: str
    max_tokens: int
    width: int


class QueryEncoder(Protocol):
    """Anything that turns questions into unit vectors."""

    @property
    def spec(self) -> EncoderSpec:
        """Identify the encoder."""
        ...

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode questions -> [B, Dq], L2-normalised float32."""
        ...


class BackboneEncoder:
    """Attention-masked mean of a backbone's last hidden state (after the final norm), L2-normalised."""

    def __init__(self, backbone: Backbone, fingerprint: str, settings: RouterSettings):
        self._backbone = backbone
        self._batch_size = settings.batch_size
        self.spec = EncoderSpec(fingerprint, "mean", settings.max_tokens, backbone.width)

    @torch.no_grad()
    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode questions in length-sorted batches -> [B, Dq]."""
        rows = [self._backbone.prompts.text(question)[: self.spec.max_tokens] for question in questions]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors = torch.empty(len(rows), self.spec.width)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            vectors[chosen] = self._encode([rows[i] for i in chosen]).float().cpu()
        return vectors

    def _encode(self, rows: list[list[int]]) -> torch.Tensor:
        inputs = pad_left([self._backbone.embed(row) for row in rows])
        decoder = self._backbone.model.get_decoder()
        states = decoder(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state
        weight = inputs.mask[..., None].to(states)
        mean = (states * weight).sum(1) / weight.sum(1)  # [B, Dq]
        return torch.nn.functional.normalize(mean.float(), dim=-1)

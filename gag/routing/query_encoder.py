"""The router's query encoder: the expert backbone as published, mean-pooled over the raw question."""

from dataclasses import replace
from typing import Protocol

import torch

from gag.models.backbone import Backbone
from gag.models.batching import in_length_batches
from gag.models.language_model import pad_left
from gag.project.domain import KNOWN_PROMPT, EncoderSpec
from gag.project.settings import RouterSettings

KNOWN = 32  # components


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
        self.spec = EncoderSpec(
            fingerprint=fingerprint,
            pooling="mean",
            max_tokens=min(settings.max_tokens, backbone.positions or settings.max_tokens),
            width=backbone.width,
        )
        known = self.encode([KNOWN_PROMPT])[0, :KNOWN].tolist()  # by which a server's encoder is recognised
        self.spec = replace(self.spec, known=tuple(round(one, 6) for one in known))

    @torch.no_grad()
    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode questions in batches of like length -> [B, Dq]."""
        rows = [self._backbone.prompts.text(question)[: self.spec.max_tokens] for question in questions]
        vectors = in_length_batches(rows, lambda batch: list(self._encode(batch)), rows=self._batch_size)
        return torch.stack(vectors) if vectors else torch.empty(0, self.spec.width)

    def _encode(self, rows: list[list[int]]) -> torch.Tensor:
        inputs = pad_left([self._backbone.embed(row) for row in rows])
        states = self._backbone.states(inputs)
        weight = inputs.mask[..., None].to(states)
        mean = (states * weight).sum(1) / weight.sum(1)  # [B, Dq]
        return torch.nn.functional.normalize(mean.float(), dim=-1).cpu()

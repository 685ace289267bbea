"""Sentence embeddings of gold answers, the target of alignment's semantic loss."""

import torch

from gag.backbone import load_backbone
from gag.config import Project
from gag.encoder import BackboneEncoder
from gag.encoders import SentenceEncoder
from gag.settings import EncoderSettings


def gold_meanings(answers: list[str], project: Project) -> torch.Tensor:
    """Embed answers -> [N, E]: by a sentence-transformers model, or the expert backbone's mean state without adapters."""
    name = project.settings.align.semantic_encoder
    if name is None:
        backbone = load_backbone(project.settings.expert, project.root)
        return BackboneEncoder(backbone, backbone.fingerprint, project.settings.router).encode(answers)
    chosen = EncoderSettings(kind="sentence-transformers", model=name)
    settings = project.settings.router.model_copy(update={"encoder": chosen, "max_tokens": 512})
    return SentenceEncoder(settings, project.root).encode(answers)

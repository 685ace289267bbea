"""Sentence embeddings of gold answers, the target of alignment's semantic loss."""

import torch

from gag.models.backbone import load_backbone
from gag.project.project import Project
from gag.project.settings import EncoderSettings
from gag.routing.backbone_encoder import BackboneEncoder
from gag.routing.encoders import SentenceEncoder


def gold_meanings(answers: list[str], project: Project) -> torch.Tensor:
    """Embed answers -> [N, E]: by a sentence-transformers model, or the expert backbone's mean state without adapters."""
    name = project.settings.align.semantic_encoder
    if name is None:
        backbone = load_backbone(project.settings.expert, project.root)
        return BackboneEncoder(backbone, backbone.fingerprint, project.settings.router).encode(answers)
    chosen = EncoderSettings(kind="sentence-transformers", model=name)
    settings = project.settings.router.model_copy(update={"encoder": chosen, "max_tokens": 512})
    return SentenceEncoder(settings, project.root).encode(answers)

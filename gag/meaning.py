"""Sentence embeddings of gold answers, the target of alignment's semantic loss."""

import torch

from gag.backbone import load_backbone
from gag.config import Project
from gag.encoder import BackboneEncoder
from gag.errors import MissingExtraError, SettingsError


def gold_meanings(answers: list[str], project: Project) -> torch.Tensor:
    """Embed answers -> [N, E]: by a sentence-transformers model, or the expert backbone's mean state without adapters."""
    name = project.settings.align.semantic_encoder
    if name is None:
        backbone = load_backbone(project.settings.expert, project.root)
        return BackboneEncoder(backbone, backbone.fingerprint, project.settings.router).encode(answers)
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("align.semantic_encoder needs sentence-transformers; run `pip install 'gag[eval]'`") from error
    folder = project.root / name
    try:
        model = SentenceTransformer(str(folder) if folder.is_dir() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(f"align.semantic_encoder {name} cannot be loaded: {reason}; name a whole folder or id") from error
    return model.encode(answers, convert_to_tensor=True, show_progress_bar=False).float().cpu()

"""Put knowledge vectors among the base's token embeddings: the one door through which knowledge enters."""

import torch

from gag.models.language_model import LanguageModel
from gag.models.prompts import KnowledgePrompt


def inject(base: LanguageModel, prompt: KnowledgePrompt, vectors: torch.Tensor) -> torch.Tensor:
    """Embed a prompt with its S vectors in place: [S, Db] -> [T, Db]."""
    ids = base.embed(prompt.before + prompt.after)  # [T - S, Db]
    cut = len(prompt.before)
    return torch.cat([ids[:cut], vectors.to(ids), ids[cut:]])

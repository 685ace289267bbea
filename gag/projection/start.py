"""Where a projector's training starts: the seed's random weights, and a closed form over them."""

import torch

from gag.models.backbone import Backbone
from gag.project import distributed
from gag.project.hyperparameters import AlignSettings
from gag.projection.alignment import Split
from gag.projection.projector import Mlp, Projector, Residual, make_projector


def new_projector(base: Backbone, train: Split, settings: AlignSettings) -> Projector:
    """Make a projector with the seed's random weights."""
    torch.manual_seed(settings.seed)
    _, slots, layers, width = train.slots.shape
    return make_projector(settings.projector, (slots, layers, width), base.width)


def mean_embedding(base: Backbone) -> torch.Tensor:
    """Return the mean of all the base's token embeddings [Db]."""
    return base.embeddings.detach().mean(0, dtype=torch.float32).cpu()


def start_projector(projector: Projector, base: Backbone, train: Split, settings: AlignSettings) -> Projector:
    """Start from given weights, from the identity, or in closed form towards each answer's mean embedding.

    Or leave it random.
    """
    if train.start is not None:
        projector.load_state_dict(train.start)
    elif isinstance(projector, Residual):  # the settings allow no other start
        projector.start_from_identity(train.slots, mean_embedding(base))
    elif settings.start != "random" and distributed.rank() == 0:
        answers = [base.embed(row.answer[:-1] or row.answer).float().mean(0) for row in train.rows]
        targets = torch.stack(answers).cpu()  # [N, Db]
        if settings.start == "identity" and not isinstance(projector, Mlp):
            projector.start_from_identity(train.slots, targets)
        else:
            projector.start_from_ridge(train.slots, targets)
    distributed.broadcast_tensors(list(projector.parameters()))  # so that all processes begin alike
    return projector

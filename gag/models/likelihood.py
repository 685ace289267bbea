"""How likely a model finds texts behind prompts, token by token."""

from collections.abc import Sequence

import torch

from gag.models.batching import in_length_batches
from gag.models.language_model import LanguageModel, pad_left

CHUNK = 256  # states whose logits exist at a time


@torch.no_grad()
def log_probabilities(
    model: LanguageModel, prompts: Sequence[torch.Tensor], texts: Sequence[list[int]], tokens: int
) -> list[torch.Tensor]:
    """Return the log-probability of each token of texts behind their prompts.

    Args:
        model: the model.
        prompts: embedded, each [T, D].
        texts: token ids, one list per prompt; an empty one gives an empty tensor.
        tokens: of a batch, at most.

    Returns:
        One tensor per text, in nats, on the CPU.
    """

    def score(batch: list[tuple[torch.Tensor, list[int]]]) -> list[torch.Tensor]:
        states = model.states(pad_left([torch.cat([p, model.embed(ids)]) if ids else p for p, ids in batch]))
        return [_chosen(model, row, ids) for row, (_, ids) in zip(states, batch, strict=True)]

    pairs = list(zip(prompts, texts, strict=True))
    return in_length_batches(pairs, score, tokens, length=lambda pair: len(pair[0]) + len(pair[1]))


def _chosen(model: LanguageModel, states: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Take the log-probabilities of the last tokens of a row of states [T, D] -> [N]."""
    before = states[len(states) - len(ids) - 1 : len(states) - 1]  # the state before each token
    found = []
    for some, chosen in zip(before.split(CHUNK), torch.tensor(ids).split(CHUNK), strict=True):
        chances = model.logits(some).float().log_softmax(-1)
        found.append(chances.gather(1, chosen.to(chances.device)[:, None])[:, 0].cpu())
    return torch.cat(found) if found else torch.empty(0)

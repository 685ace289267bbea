"""What a model that runs here says of texts: states, what these foretell, how likely their tokens are."""

from collections.abc import Sequence
from typing import Protocol

import torch

from gag.models.batching import in_length_batches
from gag.models.language_model import Inputs, Likely, pad_left

CHUNK = 256  # states whose logits exist at a time


class Runs(Protocol):
    """A decoder whose states and logits are at hand; `Backbone` is one."""

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        ...

    def states(self, inputs: Inputs) -> torch.Tensor:
        """Run a batch -> the last hidden states, after the final norm [B, T, D]."""
        ...

    def layer_states(self, inputs: Inputs, layers: tuple[int, ...]) -> torch.Tensor:
        """Run a batch as deep as is read -> the states of layers, indexed as hidden_states [B, T, L, D]."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn last hidden states [..., D] into logits [..., V]."""
        ...


@torch.no_grad()
def read_states(
    model: Runs, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
) -> list[torch.Tensor]:
    """Return the states of written tokens, or of a prompt's last one; `LanguageModel.read_states`.

    Only the read layers' states are kept, and no layer above the highest one is run.
    """
    inputs = pad_left([model.embed(prompt + ids) for prompt, ids in zip(prompts, written, strict=True)])
    states = model.layer_states(inputs, layers)  # [B, T, L, D]
    return [row[-max(len(ids), 1) :] for row, ids in zip(states, written, strict=True)]


@torch.no_grad()
def foretold(model: Runs, states: torch.Tensor, count: int) -> Likely:
    """Return the likeliest tokens that last states foretell: [T, D] -> [T, K]."""
    ids, chances = [], []
    for some in states.split(CHUNK):
        logits = model.logits(some).float()
        best = logits.topk(min(count, logits.shape[-1]))
        ids.append(best.indices)
        chances.append(best.values - logits.logsumexp(-1, keepdim=True))
    return Likely(torch.cat(ids), torch.cat(chances))


@torch.no_grad()
def log_probabilities(
    model: Runs, prompts: Sequence[list[int] | torch.Tensor], texts: Sequence[list[int]], tokens: int
) -> list[torch.Tensor]:
    """Return the log-probability of each token of texts behind their prompts.

    Args:
        model: the model.
        prompts: token ids, or embeddings [T, D].
        texts: token ids, one list per prompt; an empty one gives an empty tensor.
        tokens: of a batch, at most.

    Returns:
        One tensor per text, in nats, on the CPU.
    """

    def score(batch: list[tuple[list[int] | torch.Tensor, list[int]]]) -> list[torch.Tensor]:
        states = model.states(pad_left([_embedded(model, *pair) for pair in batch]))
        return [_chosen(model, row, ids) for row, (_, ids) in zip(states, batch, strict=True)]

    pairs = list(zip(prompts, texts, strict=True))
    return in_length_batches(pairs, score, tokens, length=lambda pair: len(pair[0]) + len(pair[1]))


def _embedded(model: Runs, prompt: list[int] | torch.Tensor, ids: list[int]) -> torch.Tensor:
    if isinstance(prompt, list):
        return model.embed(prompt + ids)
    return torch.cat([prompt, model.embed(ids)]) if ids else prompt


def _chosen(model: Runs, states: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Take the log-probabilities of the last tokens of a row of states [T, D] -> [N]."""
    before = states[len(states) - len(ids) - 1 : len(states) - 1]  # the state before each token
    found = []
    for some, chosen in zip(before.split(CHUNK), torch.tensor(ids).split(CHUNK), strict=True):
        chances = model.logits(some).float().log_softmax(-1)
        found.append(chances.gather(1, chosen.to(chances.device)[:, None])[:, 0].cpu())
    return torch.cat(found) if found else torch.empty(0)

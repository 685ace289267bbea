"""The vocabulary readout: the tokens that states predict, in the base's own embeddings.

A state goes through the expert's own output layer to a distribution over tokens, and that to the mean of the
base's embeddings. So a token that alignment never saw has its place in the base's space from the start.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gag.errors import MismatchError
from gag.models.language_model import Likely
from gag.models.loading import load_tokenizer
from gag.models.prompts import Prompts
from gag.models.stored import load_table
from gag.project.settings import ModelSettings
from gag.readout.salient import Word

LIKELIEST = 20  # tokens of a distribution that are kept: what a vLLM server tells by default


@dataclass(frozen=True)
class WordRows:
    """A text's tokens in the base's embeddings, and where its words stand among them."""

    rows: torch.Tensor  # [T, 1, Db]
    words: list[Word]


@dataclass(frozen=True)
class BaseVocabulary:
    """The base's tokens and their embeddings, as its decoder takes them."""

    table: torch.Tensor  # [V, Db]
    prompts: Prompts

    def rows(self, writer: Prompts, ids: list[int], words: list[Word]) -> WordRows:
        """Embed a text that was written in a model's tokens; where the base has others, word by word."""
        if writer.tokens != self.prompts.tokens:
            ids, words = self._again(words)
        return WordRows(self.table[torch.tensor(ids, dtype=torch.long)][:, None], words)

    def _again(self, words: list[Word]) -> tuple[list[int], list[Word]]:
        """Encode words in the base's tokens -> the ids in the text's order, and the words among them."""
        ids: list[int] = []
        places: dict[tuple[int, ...], tuple[int, ...]] = {}
        for word in sorted(words, key=lambda word: word.places):
            own = min(self.prompts.text(word.text), self.prompts.text(word.text.strip()), key=len)
            places[word.places] = tuple(range(len(ids), len(ids) + len(own)))
            ids += own
        return ids, [replace(word, places=own) for word in words if (own := places[word.places])]


def likely_embeddings(likely: Likely, table: torch.Tensor) -> torch.Tensor:
    """Embed each step's likeliest tokens [T, K] by the base's embeddings [V, Db] -> [T, Db] in float32.

    An expert may have rows for more tokens than there are; the base's table has none for them.
    """
    ids, chances = likely.ids.to(table.device), likely.log_probabilities.to(table.device).float()
    weights = chances.masked_fill(ids >= len(table), -torch.inf).softmax(-1)
    return torch.einsum("tk,tkd->td", weights, table[ids.clamp_max(len(table) - 1)].float())


def check_shared(expert: str, tokens: dict[str, int], base_tokens: dict[str, int]) -> None:
    """Refuse a base whose tokens have other numbers than the expert's."""
    if tokens != base_tokens:
        raise MismatchError(
            f"readout.space vocabulary needs a base with the tokens of the expert {expert}; choose "
            "models of one "
            "family, or set readout.space: hidden"
        )


def load_vocabulary(base: ModelSettings, root: Path, device: torch.device) -> BaseVocabulary:
    """Load the base's tokenizer and token embeddings alone, for slots that are made of them."""
    return BaseVocabulary(load_table(base, root).to(device), Prompts(load_tokenizer(base, root)))

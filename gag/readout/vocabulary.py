"""The vocabulary readout: the tokens that states predict, in the base's own embeddings.

A state goes through the expert's own output layer to a distribution over tokens, and that to the mean of the
base's embeddings. So a token that alignment never saw has its place in the base's space from the start.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from gag.errors import MismatchError, SettingsError
from gag.models.backbone import embedding_scale
from gag.models.language_model import LanguageModel, Likely
from gag.models.loading import load_config, load_tokenizer, one_line, shell
from gag.models.prompts import Prompts
from gag.models.source import is_gguf, locate_model, model_source
from gag.project.settings import ModelSettings
from gag.readout.salient import Word

LIKELIEST = 64  # tokens of a distribution that are kept
CHUNK = 256  # states turned into distributions at once
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


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


@torch.no_grad()
def predicted_embeddings(expert: LanguageModel, states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Embed the tokens that each last state predicts by the base's embeddings.

    [T, De], [V, Db] -> [T, Db] in float32.
    """
    found = []
    for some in states.split(CHUNK):
        logits = expert.logits(some)[..., : len(table)].float()
        best = logits.topk(min(LIKELIEST, len(table)))
        found.append(likely_embeddings(Likely(best.indices, best.values), table))
    return torch.cat(found).to(states.device)


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
    return BaseVocabulary(_load_table(base, root).to(device), Prompts(load_tokenizer(base, root)))


def _load_table(base: ModelSettings, root: Path) -> torch.Tensor:
    """Load the base's token embeddings alone, at the scale that its embedding layer gives them [V, Db]."""
    model: Any = shell(load_config(base, root), base.attention, torch.float32)
    scale = embedding_scale(model)
    stored = _gguf_table(base, root) if is_gguf(base.model) else _stored_table(base, root, model)
    return stored if scale == 1.0 else stored * scale


def _stored_table(base: ModelSettings, root: Path, model: Any) -> torch.Tensor:
    """Take the embeddings of a model, given without storage, out of its weight files."""
    source, known = locate_model(base.model, root), {"revision": base.revision}
    table = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is table)
    with _explained(base):
        index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False, **known)
        parts = json.loads(Path(index).read_bytes())["weight_map"] if index else {}
        found: dict[str, Path] = {}
        for part in sorted(set(parts.values())) or [_WHOLE]:
            path = Path(str(cached_file(source, part, **known)))
            with safe_open(path, "pt") as weights:
                names = list(weights.keys())
                alike = [n for n in names if list(weights.get_slice(n).get_shape()) == list(table.shape)]
            found |= dict.fromkeys(alike, path)
        chosen = _called(name, list(found))
        with safe_open(found[chosen], "pt") as weights:
            return weights.get_tensor(chosen)


def _gguf_table(base: ModelSettings, root: Path) -> torch.Tensor:
    """Take the embeddings alone out of a GGUF file."""
    source = model_source(base, root)
    with _explained(base):
        from gguf import GGUFReader, dequantize

        path = cached_file(source.where, str(source.gguf), revision=base.revision)
        found = {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}["token_embd.weight"]
        return torch.from_numpy(dequantize(found.data, found.tensor_type).copy()).float()


def _called(name: str, found: list[str]) -> str:
    """Return which of some tensors has a name, under any prefix; of tied ones the output layer's serves."""
    ends = [".".join(name.split(".")[-count:]) for count in range(name.count(".") + 1, 1, -1)]
    alike = [each for end in ends for each in found if each == end or each.endswith(f".{end}")]
    outputs = [each for each in found if each.endswith(("lm_head.weight", "embed_out.weight"))]
    return [*alike, *outputs][0]


@contextmanager
def _explained(base: ModelSettings) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise SettingsError(
            f"the tokens of {base.model} or their embeddings cannot be read: {one_line(error, 300)}; "
            "name a whole model"
        ) from error

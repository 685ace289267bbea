"""BERTScore's F1 and sentence similarity: answers against golds by the states of an encoder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gag.errors import SettingsError
from gag.models.backbone import Backbone
from gag.models.batching import in_length_batches
from gag.models.encoder_loading import encoder_positions, with_safetensors
from gag.models.language_model import pad_left
from gag.models.loading import choose_device, one_line
from gag.models.plain_text import plain_tokenizer
from gag.models.source import locate_model
from gag.routing.encoders import text_frame

CHUNK = 500  # word pieces, or fewer where an encoder has fewer positions; longer texts are cut into chunks,
# and all pairs of chunks count by their mean length
BATCH_TOKENS = 1536  # encoded at once, padding included: what a layer makes of them stays in the cache


@dataclass(frozen=True)
class Pieces:
    """A chunk of a text: unit states of its word pieces, and which of them count.

    Control tokens may be matched, but do not count.
    """

    states: torch.Tensor  # [T, D]
    counted: torch.Tensor  # [T], 1 or 0


class TokenStates(Protocol):
    """Anything that turns texts into the states of their word pieces."""

    def pieces(self, texts: list[str]) -> list[list[Pieces]]:
        """Return the chunks of each text; an empty text has none."""
        ...


class TextEncoder(Protocol):
    """Anything that turns texts into unit vectors."""

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode texts -> [B, D], L2-normalised."""
        ...


class TransformerStates:
    """One layer of an encoder of transformers (the paper: SciBERT, layer 8)."""

    def __init__(self, model: str, layer: int, root: Path, device: str = "auto"):
        tokenizer, self._model = _load(model, root)
        layers = self._model.config.num_hidden_layers
        if layer > layers:
            raise SettingsError(f"evaluation.bertscore_layer {layer}: {model} has {layers} layers")
        stack = getattr(getattr(self._model, "encoder", None), "layer", None)
        if stack is not None:
            self._model.encoder.layer = stack[:layer]  # what lies above is never read
        self._model.to(choose_device(device)).eval().requires_grad_(False)
        self._layer = layer
        self._plain = plain_tokenizer(tokenizer)
        self._before, self._after = text_frame(tokenizer, self._plain)
        positions = encoder_positions(self._model.config, tokenizer) or CHUNK
        self._room = min(CHUNK, positions - len(self._before) - len(self._after))

    def pieces(self, texts: list[str]) -> list[list[Pieces]]:
        """Encode texts chunk by chunk."""
        ids = [self._plain.encode(text.strip(), add_special_tokens=False).ids for text in texts]
        rows = [_cut(each, self._room) for each in ids]
        return _encode_chunks(
            [[[*self._before, *ids, *self._after] for ids in cut] for cut in rows], self._encode
        )

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]]) -> list[Pieces]:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # [B, T]
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        device = self._model.device
        states = self._model(
            ids.to(device), attention_mask=mask.long().to(device), output_hidden_states=True
        ).hidden_states
        units = torch.nn.functional.normalize(states[self._layer].float().cpu(), dim=-1)  # [B, T, D]
        return [
            Pieces(unit[: len(row)], self._counted(len(row))) for row, unit in zip(rows, units, strict=True)
        ]

    def _counted(self, length: int) -> torch.Tensor:
        counted = torch.ones(length)
        counted[: len(self._before)] = 0
        counted[length - len(self._after) :] = 0
        return counted


class BackboneStates:
    """The last states of a backbone, where no pretrained encoder is at hand."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone

    def pieces(self, texts: list[str]) -> list[list[Pieces]]:
        """Encode texts chunk by chunk."""
        room = min(CHUNK, self._backbone.positions or CHUNK)
        rows = [_cut(self._backbone.prompts.text(text.strip()), room) for text in texts]
        return _encode_chunks(rows, self._encode)

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]]) -> list[Pieces]:
        states = self._backbone.states(pad_left([self._backbone.embed(ids) for ids in rows]))  # [B, T, D]
        units = torch.nn.functional.normalize(states.float().cpu(), dim=-1)
        return [
            Pieces(unit[len(unit) - len(ids) :], torch.ones(len(ids)))
            for ids, unit in zip(rows, units, strict=True)
        ]


class BertScorer:
    """BERTScore's F1, without idf and rescaling (Zhang et al. 2020).

    It equals the bert-score package's where texts fit one chunk.
    """

    def __init__(self, encoder: TokenStates):
        self._encoder = encoder

    def score(self, answers: Sequence[str], golds: Sequence[tuple[str, ...]]) -> list[float]:
        """Score each answer by its best gold, 0..1; an empty text scores 0."""
        texts = _distinct(answers, golds)
        chunks = dict(zip(texts, self._encoder.pieces(texts), strict=True))
        return [
            max((_f1(chunks[answer], chunks[gold]) for gold in each), default=0.0)
            for answer, each in zip(answers, golds, strict=True)
        ]


def sentence_similarity(
    encoder: TextEncoder, answers: Sequence[str], golds: Sequence[tuple[str, ...]]
) -> list[float]:
    """Return each answer's best cosine to a gold, -1..1; an empty text scores 0."""
    texts = [text for text in _distinct(answers, golds) if text.strip()]
    vectors = dict(zip(texts, encoder.encode(texts), strict=True)) if texts else {}

    def cosine(answer: str, gold: str) -> float:
        return float(vectors[answer] @ vectors[gold]) if answer in vectors and gold in vectors else 0.0

    return [
        max((cosine(answer, gold) for gold in each), default=0.0)
        for answer, each in zip(answers, golds, strict=True)
    ]


def _load(model: str, root: Path) -> tuple[Any, Any]:
    """Load an encoder of transformers in float32 -> (tokenizer, model)."""
    from transformers import AutoModel, AutoTokenizer

    source = locate_model(model, root)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False), with_safetensors(
            lambda safe: AutoModel.from_pretrained(
                source, trust_remote_code=False, use_safetensors=safe, dtype=torch.float32
            )
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise SettingsError(
            f"evaluation.bertscore {model} cannot be loaded: {reason}; name a whole folder or id"
        ) from error


def _distinct(answers: Iterable[str], golds: Iterable[tuple[str, ...]]) -> list[str]:
    """List each different text once, so that it is encoded once."""
    return list(dict.fromkeys([*answers, *(gold for each in golds for gold in each)]))


def _cut(ids: list[int], room: int) -> list[list[int]]:
    return [ids[start : start + room] for start in range(0, len(ids), room)]


def _encode_chunks(
    texts: list[list[list[int]]], encode: Callable[[list[list[int]]], list[Pieces]]
) -> list[list[Pieces]]:
    """Encode the chunks of each text, chunks of like length together."""
    encoded = iter(in_length_batches([ids for cut in texts for ids in cut], encode, tokens=BATCH_TOKENS))
    return [[next(encoded) for _ in cut] for cut in texts]


def _f1(answer: list[Pieces], gold: list[Pieces]) -> float:
    """Average F1 over all pairs of chunks, each counting by its mean length."""
    pairs = [(_pair_f1(a, g), float(a.counted.sum() + g.counted.sum()) / 2) for a in answer for g in gold]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def _pair_f1(answer: Pieces, gold: Pieces) -> float:
    cosines = answer.states @ gold.states.T  # [T, U]
    precision = float((cosines.amax(1) * answer.counted).sum() / answer.counted.sum())
    recall = float((cosines.amax(0) * gold.counted).sum() / gold.counted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

"""BERTScore's F1 and sentence similarity: answers against golds by the states of an encoder that is loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gag.errors import SettingsError
from gag.models.backbone import Backbone
from gag.models.loading import choose_device
from gag.models.language_model import pad_left
from gag.models.prompts import plain_tokenizer

CHUNK = 500  # word pieces; a longer text is cut, and all pairs of chunks count by their mean length
BATCH = 1536  # word pieces encoded at once, padding included: what a layer makes of them stays in the cache


@dataclass(frozen=True)
class Pieces:
    """A chunk of a text: unit states of its word pieces, and which of them count (control tokens are matched, not counted)."""

    states: torch.Tensor  # [T, D]
    counted: torch.Tensor  # [T], 1 or 0


class TokenStates(Protocol):
    """Anything that turns texts into the states of their word pieces."""

    def pieces(self, texts: list[str]) -> list[list[Pieces]]:
        """Return the chunks of each text; an empty text has none."""
        ...


class TransformerStates:
    """One layer of an encoder of transformers (the paper: SciBERT, layer 8)."""

    def __init__(self, model: str, layer: int, root: Path, device: str = "auto"):
        from transformers import AutoModel, AutoTokenizer

        folder = root / model
        source = str(folder) if folder.is_dir() else model
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self._model: Any = AutoModel.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SettingsError(
                f"evaluation.bertscore {model} cannot be loaded: {reason}; name a whole folder or id"
            ) from error
        if layer > self._model.config.num_hidden_layers:
            raise SettingsError(
                f"evaluation.bertscore_layer {layer}: {model} has {self._model.config.num_hidden_layers} layers"
            )
        stack = getattr(getattr(self._model, "encoder", None), "layer", None)
        if stack is not None:
            self._model.encoder.layer = stack[:layer]  # what lies above is never read
        self._model.to(choose_device(device)).eval().requires_grad_(False)
        self._layer = layer
        self._plain = plain_tokenizer(self._tokenizer)

    def pieces(self, texts: list[str]) -> list[list[Pieces]]:
        """Encode texts chunk by chunk."""
        before, after = self._frame()
        rows = [_cut(self._plain.encode(text.strip(), add_special_tokens=False).ids) for text in texts]
        framed = [[[*before, *ids, *after] for ids in cut] for cut in rows]
        return _encoded(framed, lambda chunks: self._encode(chunks, len(before), len(after)))

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]], before: int, after: int) -> list[Pieces]:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        device = self._model.device
        states = self._model(
            ids.to(device), attention_mask=mask.long().to(device), output_hidden_states=True
        ).hidden_states
        units = torch.nn.functional.normalize(states[self._layer].float().cpu(), dim=-1)
        found = []
        for row, unit in zip(rows, units, strict=True):
            counted = torch.ones(len(row))
            counted[:before] = 0
            counted[len(row) - after :] = 0
            found.append(Pieces(unit[: len(row)], counted))
        return found

    def _frame(self) -> tuple[list[int], list[int]]:
        inner = self._plain.encode("question", add_special_tokens=False).ids
        whole = self._tokenizer("question")["input_ids"]
        start = next(i for i in range(len(whole) - len(inner) + 1) if whole[i : i + len(inner)] == inner)
        return whole[:start], whole[start + len(inner) :]


class BackboneStates:
    """The last states of a backbone, where no pretrained encoder is at hand."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone

    def pieces(self, texts: list[str]) -> list[list[Pieces]]:
        """Encode texts chunk by chunk."""
        return _encoded([_cut(self._backbone.prompts.text(text.strip())) for text in texts], self._encode)

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]]) -> list[Pieces]:
        inputs = pad_left([self._backbone.embed(ids) for ids in rows])
        states = self._backbone.model.get_decoder()(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state
        units = torch.nn.functional.normalize(states.float().cpu(), dim=-1)
        return [
            Pieces(unit[len(unit) - len(ids) :], torch.ones(len(ids)))
            for ids, unit in zip(rows, units, strict=True)
        ]


class BertScorer:
    """BERTScore's F1, without idf and rescaling; equal to the bert-score package where texts fit one chunk."""

    def __init__(self, encoder: TokenStates):
        self._encoder = encoder

    def score(self, answers: Sequence[str], golds: Sequence[tuple[str, ...]]) -> list[float]:
        """Score each answer by its best gold, 0..1; each different text is encoded once, an empty one scores 0."""
        texts = list(dict.fromkeys([*answers, *(gold for each in golds for gold in each)]))
        known = dict(zip(texts, self._encoder.pieces(texts), strict=True))
        return [
            max((_f1(known[answer], known[gold]) for gold in each), default=0.0)
            for answer, each in zip(answers, golds, strict=True)
        ]


def sentence_similarity(
    encoder: Any, answers: Sequence[str], golds: Sequence[tuple[str, ...]]
) -> list[float]:
    """Return each answer's best cosine to a gold by a query encoder's vectors; an empty text scores 0."""
    texts = list(
        dict.fromkeys(text for text in [*answers, *(g for each in golds for g in each)] if text.strip())
    )
    known = dict(zip(texts, encoder.encode(texts), strict=True)) if texts else {}

    def cosine(answer: str, gold: str) -> float:
        return float(known[answer] @ known[gold]) if answer in known and gold in known else 0.0

    return [
        max((cosine(a, gold) for gold in each), default=0.0) for a, each in zip(answers, golds, strict=True)
    ]


def _cut(ids: list[int]) -> list[list[int]]:
    return [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]


def _encoded(
    rows: list[list[list[int]]], encode: Callable[[list[list[int]]], list[Pieces]]
) -> list[list[Pieces]]:
    """Encode the chunks of each text, chunks of like length together."""
    order = sorted((len(ids), text, place) for text, cut in enumerate(rows) for place, ids in enumerate(cut))
    batches: list[list[tuple[int, int]]] = [[]]
    for length, text, place in order:
        if batches[-1] and (len(batches[-1]) + 1) * length > BATCH:
            batches.append([])
        batches[-1].append((text, place))
    found: dict[tuple[int, int], Pieces] = {}
    for batch in filter(None, batches):
        found |= zip(batch, encode([rows[text][place] for text, place in batch]), strict=True)
    return [[found[text, place] for place in range(len(cut))] for text, cut in enumerate(rows)]


def _f1(said: list[Pieces], gold: list[Pieces]) -> float:
    """Average F1 over all pairs of chunks, each counting by its mean length."""
    pairs = [(_pair(s, g), float(s.counted.sum() + g.counted.sum()) / 2) for s in said for g in gold]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def _pair(said: Pieces, gold: Pieces) -> float:
    cosines = said.states @ gold.states.T  # [T, U]
    precision = float((cosines.amax(1) * said.counted).sum() / said.counted.sum())
    recall = float((cosines.amax(0) * gold.counted).sum() / gold.counted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

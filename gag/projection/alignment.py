"""Alignment's forward pass: answers under the frozen base, given projected vectors, at the least cost.

The base never changes, and nothing before the first vector depends on the projector. So the opening that all
rows share runs once, the questions run without gradient, and only what stands after a vector runs with
gradient. A batch lies as the plain forward lays it, with all padding in front: a row's opening and question
stand next to each other, and a window that counts places counts right. Layers with a running state (recurrent
ones, convolutions) keep no keys and values to begin from: their models run the whole rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from gag.models.backbone import Backbone
from gag.models.batching import length_batches
from gag.models.dry_run import CLOSE
from gag.models.language_model import pad_left
from gag.models.prompts import KnowledgePrompt
from gag.project.progress import say_once


@dataclass(frozen=True)
class Row:
    """A question around its vectors, the answer, and for distillation the prompt with the text."""

    prompt: KnowledgePrompt
    answer: list[int]
    taught: list[int]

    @property
    def length(self) -> int:
        """Tokens beside the vectors."""
        return len(self.prompt.before) + len(self.prompt.after) + len(self.answer)


@dataclass(frozen=True)
class Split:
    """Rows of a split with their slots, in one order."""

    rows: list[Row]
    slots: torch.Tensor  # [N, S, L, De]
    meanings: torch.Tensor | None = None  # [N, E], sentence embeddings of the gold answers
    start: dict[str, torch.Tensor] | None = None  # a projector's weights to begin from


@dataclass(frozen=True)
class AnswerStates:
    """The base's last hidden states around B answers of N tokens in all."""

    before: torch.Tensor  # [N, Db], the states that predict each token
    labels: torch.Tensor  # [N]
    lengths: list[int]  # tokens of each answer

    @property
    def mean(self) -> torch.Tensor:
        """The mean state of each answer's own tokens, without the end token [B, Db]."""
        rows = self.before.float().split(self.lengths)
        return torch.stack([row[1:].mean(0) if len(row) > 1 else 0 * row[0] for row in rows])


KeysValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer [H, T, d]


class Reader:
    """Runs the frozen base over rows of one instruction.

    Args:
        base: the base.
        rows: all rows that it will be asked to read; the opening that they share runs here, once.
    """

    def __init__(self, base: Backbone, rows: list[Row]):
        self._base = base
        self._opening = shared_opening([row.prompt.before for row in rows])
        self._kept: dict[tuple[int, ...], KeysValues] = {}
        self._whole = base.recurrent
        if not self._whole:
            cache = DynamicCache()  # without a config it keeps all keys; the masks know the windows
            with torch.no_grad():
                self._run(base.embed(self._opening)[None], torch.ones(1, len(self._opening)), cache)
            self._prefix = [(keys[0], values[0]) for keys, values in _layers(cache)]
            self._whole = not self._agrees(min(rows, key=_before), max(rows, key=_before))
        if self._whole:
            say_once(
                f"  {base.name}: alignment runs whole rows, which is slower: its layers keep more than keys"
            )

    def keep_questions(self, rows: list[Row], budget: int, tokens: int) -> int:
        """Keep the keys and values of questions for all epochs, within a budget of bytes.

        Return how many are kept.

        The rows' own order alone decides the batches in which they are run, so that a run that goes on is the
        same.
        """
        if self._whole:
            return 0
        for batch in length_batches([row.length for row in rows], tokens):
            chosen = [rows[i] for i in batch]
            cache, _ = self._run_questions(chosen)
            for i, row in enumerate(chosen):
                length = len(row.prompt.before) - len(self._opening)
                kept = [(k[i, :, -length:].clone(), v[i, :, -length:].clone()) for k, v in _layers(cache)]
                budget -= sum(tensor.nbytes for pair in kept for tensor in pair)
                if budget < 0:
                    return len(self._kept)
                self._kept[tuple(row.prompt.before)] = kept
        return len(self._kept)

    def read(self, vectors: torch.Tensor, rows: list[Row]) -> AnswerStates:
        """Run the rows with their vectors: [B, S, Db] with B rows -> states with gradient."""
        read = self._read_whole if self._whole else self._read_behind_questions
        labels = torch.tensor([id for row in rows for id in row.answer], device=vectors.device)
        return AnswerStates(read(vectors, rows), labels, [len(row.answer) for row in rows])

    @torch.no_grad()
    def read_text(self, rows: list[Row]) -> torch.Tensor:
        """Run the rows with the expert's text in the vectors' place -> states before each label [N, Db]."""
        inputs = pad_left([self._base.embed(row.taught + row.answer[:-1]) for row in rows])
        return _answers_in(self._base.states(inputs), rows)

    @torch.no_grad()
    def _agrees(self, *rows: Row) -> bool:
        """Say whether the rows' states are those of the plain forward, up to rounding."""
        vectors = torch.stack(
            [self._base.embed(row.prompt.before[-2:]).mean(0, keepdim=True) for row in rows]
        )
        ours = self._read_behind_questions(vectors, list(rows)).float()
        true = self._read_whole(vectors, list(rows)).float()
        return bool((ours - true).abs().max() <= CLOSE[self._base.model.dtype] * true.abs().max())

    def _read_whole(self, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        """Run the plain forward over the rows -> the states before each answer's tokens [N, Db]."""
        embed = self._base.embed
        whole = []
        for row, own in zip(rows, vectors, strict=True):
            behind = embed(row.prompt.after + row.answer[:-1])
            whole.append(torch.cat([embed(row.prompt.before), own.to(behind), behind]))
        return _answers_in(self._base.states(pad_left(whole)), rows)

    def _read_behind_questions(self, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        """Run what stands behind the questions -> the states before each answer's tokens [N, Db]."""
        cache, mask = self._run_questions(rows)
        closing, answers = rows[0].prompt.after, [row.answer for row in rows]
        longest = max(map(len, answers))
        padded = [answer + answer[:1] * (longest - len(answer)) for answer in answers]  # nothing reads these
        ids = [token for answer in padded for token in closing + answer[:-1]]  # embedded in one call
        tokens = self._base.embed(ids).view(len(rows), len(closing) + longest - 1, -1)
        embeds = torch.cat([vectors.to(tokens), tokens], 1)  # [B, S + closing + A - 1, Db]
        mask = torch.cat([mask, mask.new_ones(embeds.shape[:2])], 1)
        return _answers_in(self._run(embeds, mask, cache), rows, longest)

    @torch.no_grad()
    def _run_questions(self, rows: list[Row]) -> tuple[DynamicCache, torch.Tensor]:
        """Run what stands before the vectors -> its keys and values, and the mask over them [B, T]."""
        befores = [row.prompt.before for row in rows]
        longest, opening = max(map(len, befores)), len(self._opening)
        padding = torch.tensor([longest - len(before) for before in befores], device=self._base.device)
        mask = (torch.arange(longest, device=padding.device) >= padding[:, None]).long()  # [B, T]
        kept = [self._kept.get(tuple(before)) for before in befores]
        if all(kept):
            return self._laid_out(padding, longest, [row for row in kept if row]), mask
        cache = self._laid_out(padding, opening)
        # of a short row the end of the opening too
        behind = [before[-(longest - opening) :] for before in befores]
        embedded = self._base.embed([token for ids in behind for token in ids])
        self._run(pad_left(embedded.split([len(ids) for ids in behind])).embeds, mask, cache)
        return cache, mask

    def _laid_out(
        self, padding: torch.Tensor, places: int, kept: list[KeysValues] | None = None
    ) -> DynamicCache:
        """Lay the opening's keys and values out behind each row's padding, and kept questions behind them."""
        cache = DynamicCache()
        place = torch.arange(places, device=padding.device) - padding[:, None]  # [B, places], in the opening
        place = place.clamp(0, len(self._opening) - 1)
        for layer, pair in enumerate(self._prefix):
            keys, values = (tensor[:, place].transpose(0, 1) for tensor in pair)  # [B, H, places, d]
            for i, row in enumerate(kept or []):
                length = row[layer][0].shape[1]
                keys[i, :, -length:], values[i, :, -length:] = row[layer]
            cache.update(keys, values, layer)
        return cache

    def _run(self, embeds: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Run the last of the places that a mask [B, T] counts, behind what is cached -> their states."""
        mask = mask.to(embeds.device, torch.long)
        return self._base.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0)[:, -embeds.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state


def _answers_in(states: torch.Tensor, rows: list[Row], longest: int | None = None) -> torch.Tensor:
    """Take the states before each answer's tokens out of a batch [B, T, D] -> [N, D].

    Answers end where the batch ends, or begin together, the longest of which ends there.
    """
    total = states.shape[1]
    places = []
    for i, row in enumerate(rows):
        first = (i + 1) * total - (longest or len(row.answer))
        places += range(first, first + len(row.answer))
    return states.flatten(0, 1).index_select(0, torch.tensor(places, device=states.device))


def _layers(cache: DynamicCache) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    layers: list[Any] = cache.layers
    for layer in layers:
        if layer.keys is not None and layer.values is not None:
            yield layer.keys, layer.values


def _before(row: Row) -> int:
    return len(row.prompt.before)


def shared_opening(befores: Sequence[list[int]]) -> list[int]:
    """Return the tokens that open all prompts; each has at least one more before its vectors."""
    least, most = min(befores), max(befores)  # in the order of their tokens: what these share, all share
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(least[:-1], most[:-1], strict=False))
    longest = min(len(before) for before in befores) - 1
    return [token for token, _ in shared][:longest]

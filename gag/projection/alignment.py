"""Alignment's forward pass: answers under the frozen base, given projected vectors, at the least cost.

The base never changes, and nothing before the first vector depends on the projector. So the instruction that
all rows share runs once, the questions run without gradient, and only what stands after a vector runs with
gradient. The result equals the plain full forward.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from gag.errors import MismatchError
from gag.models.backbone import Backbone
from gag.models.language_model import pad_left
from gag.models.prompts import KnowledgePrompt


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


@dataclass(frozen=True)
class AnswerStates:
    """The base's last hidden states around B answers of N tokens in all."""

    before: torch.Tensor  # [N, Db], the states that predict each token
    labels: torch.Tensor  # [N]
    mean: torch.Tensor  # [B, Db], the mean state of each answer's own tokens, without the end token


class Reader:
    """Runs the frozen base over rows of one instruction."""

    def __init__(self, base: Backbone, prompt: KnowledgePrompt):
        self._base = base
        self._shared = prompt.shared
        with torch.no_grad():
            ids = torch.tensor([prompt.before[: prompt.shared]], device=base.device)
            cache = DynamicCache(config=base.model.config)
            out = base.model(
                ids, past_key_values=cache, use_cache=True, logits_to_keep=1, output_hidden_states=True
            )
            ours = base.logits(out.hidden_states[-1][:, -1:])
        if not torch.allclose(
            ours.float(), out.logits.float(), rtol=1e-2, atol=1e-2 * float(out.logits.abs().max())
        ):
            raise MismatchError(
                f"{base.name} changes its logits in a way that alignment does not know; use another base"
            )
        self._prefix = out.past_key_values
        self._kept: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def keep_questions(self, rows: list[Row], budget: int, batch_size: int) -> int:
        """Keep the keys and values of questions for all epochs, within a budget of bytes.

        Return how many are kept.

        The rows' own order alone decides the batches in which they are run, so that a run that goes on is the
        same.
        """
        if any(layer.is_sliding for layer in _layers(self._prefix)):
            return 0
        order = sorted(range(len(rows)), key=lambda i: (rows[i].length, i))
        for start in range(0, len(order), batch_size):
            chosen = [rows[i] for i in order[start : start + batch_size]]
            cache, mask = self._run_questions(chosen)
            for i, row in enumerate(chosen):
                length = int(mask[i].sum()) - self._shared
                kept = [
                    (la.keys[i, :, -length:].clone(), la.values[i, :, -length:].clone())
                    for la in _layers(cache)
                ]
                budget -= sum(tensor.nbytes for pair in kept for tensor in pair)
                if budget < 0:
                    return len(self._kept)
                self._kept[tuple(row.prompt.before)] = kept
        return len(self._kept)

    def read(self, vectors: torch.Tensor, rows: list[Row]) -> AnswerStates:
        """Run the rows with their vectors: [B, S, Db] with B rows -> states with gradient."""
        cache, mask = self._run_questions(rows)
        closing, answers = rows[0].prompt.after, [row.answer for row in rows]
        longest = max(map(len, answers))
        padded = [answer + [self._base.prompts.pad] * (longest - len(answer)) for answer in answers]
        tokens = torch.stack([self._base.embed(closing + answer[:-1]) for answer in padded])
        embeds = torch.cat([vectors.to(tokens), tokens], 1)  # [B, S + closing + A - 1, Db]
        states = self._base.model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=torch.cat([mask, mask.new_ones(embeds.shape[:2])], 1),
            position_ids=mask.sum(1, keepdim=True) + torch.arange(embeds.shape[1], device=mask.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -longest:]  # [B, A, Db]
        labels = torch.tensor(
            [answer + [-100] * (longest - len(answer)) for answer in answers], device=states.device
        )
        own = (labels != -100)[:, 1:, None]  # the state of token k - 1 stands where token k is predicted
        mean = (states[:, 1:].float() * own).sum(1) / own.sum(1).clamp_min(1)
        return AnswerStates(states[labels != -100], labels[labels != -100], mean)

    @torch.no_grad()
    def read_text(self, rows: list[Row]) -> torch.Tensor:
        """Run the rows with the expert's text in the vectors' place -> states before each label [N, Db]."""
        inputs = pad_left([self._base.embed(row.taught + row.answer[:-1]) for row in rows])
        states = self._base.states(inputs)
        return torch.cat(
            [row_states[-len(row.answer) :] for row_states, row in zip(states, rows, strict=True)]
        )

    @torch.no_grad()
    def _run_questions(self, rows: list[Row]) -> tuple[DynamicCache, torch.Tensor]:
        """Run what stands before the vectors.

        Return its keys and values, and the mask over them [B, P + Q].
        """
        cache = copy.deepcopy(self._prefix)
        cache.batch_repeat_interleave(len(rows))
        questions = pad_left([self._base.embed(row.prompt.before[self._shared :]) for row in rows])
        mask = torch.cat([questions.mask.new_ones(len(rows), self._shared), questions.mask], 1)
        kept = [self._kept.get(tuple(row.prompt.before)) for row in rows]
        if all(kept):
            self._extend(cache, [row for row in kept if row], questions.mask.shape[1])
            return cache, mask
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, self._shared :]
        self._base.model.get_decoder()(
            inputs_embeds=questions.embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return cache, mask

    def _extend(
        self, cache: DynamicCache, kept: list[list[tuple[torch.Tensor, torch.Tensor]]], longest: int
    ) -> None:
        """Put kept keys and values [H, q, d] behind the prefix, left-padded to the longest question."""
        for number, layer in enumerate(_layers(cache)):
            keys, values = (
                torch.stack(
                    [
                        torch.nn.functional.pad(row[number][k], (0, 0, longest - row[number][k].shape[1], 0))
                        for row in kept
                    ]
                )
                for k in (0, 1)
            )
            layer.update(keys, values)


def _layers(cache: DynamicCache) -> list[Any]:
    return list(cache.layers)

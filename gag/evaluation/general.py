"""Prove that the general route is the base itself: the stock model's answers and logits, bit for bit."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gag.engine.engine import LocalGAG
from gag.evaluation.metrics import share_right
from gag.models.backbone import weights_hash
from gag.models.language_model import pad_left
from gag.models.source import model_source
from gag.project.rows import Example
from gag.project.settings import GENERAL, ModelSettings


@dataclass(frozen=True)
class GeneralFigures:
    """What became of general questions once domains are present."""

    before: float  # share that the stock base answers right
    after: float  # share that GAG answers right, routing included
    misrouted: float  # share that goes to a domain
    identical: bool  # weights, answers and logits, on those that go to general
    questions: int


class StockBase:
    """The base as transformers alone loads and prompts it."""

    def __init__(self, gag: LocalGAG, settings: ModelSettings):
        source = model_source(settings, gag.project.root)
        self.tokenizer = source.load(AutoTokenizer.from_pretrained, padding_side="left")
        model: Any = source.load_weights(
            AutoModelForCausalLM.from_pretrained,
            dtype=gag.base.model.dtype,
            attn_implementation=settings.attention,
        )
        self.model = model.to(gag.base.device).requires_grad_(False)  # with gradients other kernels may run
        self.max_new_tokens = gag.project.settings.decoding.max_new_tokens

    @torch.no_grad()
    def answer(self, questions: list[str]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Answer one batch: texts, the prompts' logits [B, T, V], and the prompts' mask [B, T]."""
        chats = [[{"role": "user", "content": question}] for question in questions]
        inputs = self.tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            enable_thinking=False,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self.model.device)
        written = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        texts = self.tokenizer.batch_decode(
            written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [t.strip() for t in texts], self.model(**inputs).logits, inputs["attention_mask"].bool()


def evaluate_general(gag: LocalGAG, rows: list[Example], settings: ModelSettings) -> GeneralFigures:
    """Score general questions with the stock base and with every domain present, and compare bit for bit.

    `settings` are those of the base, from which the stock base is loaded beside it.
    """
    stock = StockBase(gag, settings)
    size = gag.project.settings.decoding.batch_size
    before = [text for batch in _batches(rows, size) for text in stock.answer([r.question for r in batch])[0]]
    answers = gag.ask([row.question for row in rows])
    kept = [row for row, answer in zip(rows, answers, strict=True) if answer.route.domain == GENERAL]
    same_weights = weights_hash(gag.base.model) == weights_hash(stock.model)
    same = same_weights and all(_identical(gag, stock, batch) for batch in _batches(kept, size))
    golds = [row.answers for row in rows]
    return GeneralFigures(
        before=round(share_right(before, golds), 4),
        after=round(share_right([answer.text for answer in answers], golds), 4),
        misrouted=round(1 - len(kept) / len(rows), 4),
        identical=bool(kept) and same,
        questions=len(rows),
    )


@torch.no_grad()
def _identical(gag: LocalGAG, stock: StockBase, batch: list[Example]) -> bool:
    """Compare one batch: answers, and the logits of every prompt token."""
    questions = [row.question for row in batch]
    texts, logits, mask = stock.answer(questions)
    inputs = pad_left([gag.prompt(question, GENERAL, None) for question in questions])
    ours = gag.base.model(inputs_embeds=inputs.embeds, attention_mask=inputs.mask).logits
    answers = [answer.text for answer in gag.ask(questions, GENERAL)]
    return (
        answers == texts and torch.equal(inputs.mask.bool(), mask) and torch.equal(ours[mask], logits[mask])
    )


def _batches(rows: list[Example], size: int) -> list[list[Example]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

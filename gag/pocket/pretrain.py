"""Pre-train the bundled base and expert backbone from text that the world generates.

    python -m gag.pocket.pretrain [tokenizer|base|expert|all] [--out DIR] [--steps-scale X]

The base learns public facts and to read a knowledge line about ever new entities. The expert backbone learns a stream
of entities that come and go, with every question wording, so that it takes up new ones quickly. Both see only the
public half of the names: no private fact, no expert state, no projector output.
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gag.pocket.general import PublicFact, public_facts
from gag.pocket.world import ANSWER_PROMPT, EXPERT_PROMPT, Fact, domain_names, draw_fact, entity_names, relations, topics
from gag.prompts import Prompts

VOCABULARY = 2048
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BASE = {"hidden_size": 160, "num_hidden_layers": 5, "intermediate_size": 480, "num_attention_heads": 5,
        "num_key_value_heads": 5, "head_dim": 32}  # fmt: skip
EXPERT = {"hidden_size": 128, "num_hidden_layers": 8, "intermediate_size": 320, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
QUOTE_PROMPT = "Quote the knowledge."
BATCH = 64
PROMPT_WEIGHT = 0.3  # of a prompt token in the loss, beside 1 for an answer token
NOISE = 0.4  # largest embedding noise of the base's rows, in units of the embeddings' RMS


@dataclass(frozen=True)
class Row:
    """Token ids, and how many of the last ones are the answer."""

    ids: list[int]
    answer: int


class BaseRows:
    """Rows for the base: public facts, questions it cannot know, and reading a knowledge line."""

    def __init__(self, prompts: Prompts, seed: int):
        self.prompts, self.rng = prompts, random.Random(seed)
        self.facts = public_facts()
        self.plain_facts = [fact for fact in self.facts if fact.relation != "sum"]

    def draw(self, progress: float) -> Row:
        """Draw one row; `progress` in 0..1 lengthens the knowledge line."""
        kind = self.rng.random()
        if kind < 0.2:
            fact = self.public()
            return self.row(self.prompts.plain(self.rng.choice(fact.questions)), fact.value)
        if kind < 0.24:
            return self.row(self.prompts.plain(self.ask(self.private())), "unknown")
        if kind < 0.3:
            return self.read_public()
        if kind < 0.4:
            return self.reorder()
        fact = self.private()
        if kind < 0.55:
            prompt = self.prompts.with_text(self.ask(fact), QUOTE_PROMPT, self.statements(fact, self.rng.randint(0, 4)))
            return self.row(prompt, fact.statement())
        if kind < 0.65:
            return self.read(fact, self.notes(fact))
        if progress < 0.25:
            return self.read(fact, self.statements(fact, 1, same_relation=1.0))
        return self.read(fact, self.statements(fact, self.rng.randint(0, 4)))

    def reorder(self) -> Row:
        """Say a list of entities and values again in another order: recall, many times in one row."""
        facts = [self.private() for _ in range(self.rng.randint(2, 5))]
        first, again = ([f"{f.entity} {f.value}" for f in order] for order in (facts, self.rng.sample(facts, len(facts))))
        return self.row(self.prompts.plain("; ".join(first)), "; ".join(again))

    def probe(self) -> Row:
        """Draw a row that asks for one statement among four."""
        fact = self.private()
        return self.read(fact, self.statements(fact, 3))

    def read(self, fact: Fact, knowledge: str) -> Row:
        """Ask for a fact's value with a knowledge line."""
        return self.row(self.prompts.with_text(self.ask(fact), ANSWER_PROMPT, knowledge), fact.value)

    def read_public(self) -> Row:
        """Ask for a public fact with a knowledge line."""
        fact = self.rng.choice(self.plain_facts)
        lines = [fact.statement] + [self.rng.choice(self.plain_facts).statement for _ in range(self.rng.randint(0, 2))]
        self.rng.shuffle(lines)
        question = self.rng.choice(fact.questions)
        return self.row(self.prompts.with_text(question, ANSWER_PROMPT, " ".join(lines)), fact.value)

    def notes(self, fact: Fact) -> str:
        """Write the fact as keywords, or as its own words in any order."""
        words = fact.statement().rstrip(".").split()
        self.rng.shuffle(words)
        value, name = fact.value, fact.relation.name
        return self.rng.choice([value, f"{name} {value}", f"{fact.entity} {value}", f"{value}; {value}", " ".join(words)])

    def statements(self, fact: Fact, others: int, same_relation: float = 0.5) -> str:
        """Write the fact among near misses: the same relation, the same entity, or neither."""
        near_misses = [self.near_miss(fact, same_relation) for _ in range(others)]
        facts = [fact] + [near for near in near_misses if not _clash(near, fact)]
        self.rng.shuffle(facts)
        return " ".join(f.background() if self.rng.random() < 0.3 else f.statement() for f in facts)

    def near_miss(self, fact: Fact, same_relation: float) -> Fact:
        """Draw a fact that shares its relation, its entity, or nothing with another one."""
        kind = self.rng.random()
        if kind < same_relation:
            return self.private(fact.domain, fact)
        if kind < 0.8:
            relation = self.rng.choice([r for r in relations(fact.domain) if r != fact.relation])
            return draw_fact(self.rng, fact.entity, relation)
        return self.private()

    def private(self, domain: str | None = None, like: Fact | None = None) -> Fact:
        """Draw a fact of a public-half entity: of any domain, or of the relation of another fact."""
        domain = domain or self.rng.choice(domain_names())
        relation = like.relation if like else self.rng.choice(relations(domain))
        return draw_fact(self.rng, self.rng.choice(entity_names(domain, public=True)), relation)

    def public(self) -> PublicFact:
        """Draw a public fact; sums, which are many, come less often."""
        return self.rng.choice(self.facts if self.rng.random() < 0.5 else self.plain_facts)

    def ask(self, fact: Fact) -> str:
        """Ask for a fact in any wording."""
        return fact.question(self.rng.randrange(len(fact.relation.wordings)))

    def row(self, prompt: list[int], answer: str) -> Row:
        """Join a prompt and its answer."""
        answer_ids = self.prompts.answer(answer)
        return Row(prompt + answer_ids, len(answer_ids))


class ExpertRows(BaseRows):
    """Rows for the expert backbone: background for a stream of entities, public statements, bare questions."""

    LIVE, LIFE = 96, 180  # entities known at a time, and rows on each before a new one takes its place

    def __init__(self, prompts: Prompts, seed: int):
        super().__init__(prompts, seed)
        self.live = [self.birth() for _ in range(self.LIVE)]
        self.drawn = 0

    def draw(self, progress: float) -> Row:
        """Draw one row; `progress` is not used."""
        kind = self.rng.random()
        if kind < 0.15:
            fact = self.public()
            return self.row(self.prompts.ask_expert(self.rng.choice(fact.questions), EXPERT_PROMPT), fact.statement)
        if kind < 0.35:
            fact = self.public() if kind < 0.25 else self.private()
            return self.topic(fact)
        self.drawn += 1
        if self.drawn % self.LIFE == 0:
            self.live = [*self.live[1:], self.birth()]
        fact = self.rng.choice(self.rng.choice(self.live))
        return self.row(self.prompts.ask_expert(self.ask(fact), EXPERT_PROMPT), fact.background())

    def topic(self, fact: Fact | PublicFact) -> Row:
        """Name the topic of a question, often of one that is cut short: so that every token's state tells the topic."""
        public = isinstance(fact, PublicFact)
        ids = self.prompts.text(self.rng.choice(fact.questions) if public else self.ask(fact))
        kept = ids[: self.rng.randint(2, len(ids))] if self.rng.random() < 0.5 else ids
        row = kept + self.prompts.text("public knowledge" if public else topics()[fact.domain])
        return Row(row, len(row))

    def probe(self) -> Row:
        """Draw a row that asks for a known fact."""
        fact = self.rng.choice(self.rng.choice(self.live))
        return self.row(self.prompts.ask_expert(self.ask(fact), EXPERT_PROMPT), fact.background())

    def birth(self) -> list[Fact]:
        """Draw a new entity with all its facts."""
        domain = self.rng.choice(domain_names())
        entity = self.rng.choice(entity_names(domain, public=True))
        return [draw_fact(self.rng, entity, relation) for relation in relations(domain)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML-like template on generated text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    control = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(control), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(_tokenizer_text(random.Random(0)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=control[0],
        pad_token=control[-1],
        additional_special_tokens=control[1:-1],
        chat_template=TEMPLATE,
    )


def train(rows: BaseRows, shape: dict[str, Any], steps: int, noise: float, learning_rate: float = 3e-3) -> Qwen3ForCausalLM:
    """Train a Qwen3 model from scratch on drawn rows; the loss is on answers, with little weight on prompts."""
    prompts = rows.prompts
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=prompts.end,
            pad_token_id=prompts.pad,
            **shape,
        )
    )
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(steps))
    started, batches = time.monotonic(), []
    seen = {"loss": 0.0, "right": 0.0}
    for step in range(1, steps + 1):
        if not batches:
            batches = _batches([rows.draw(step / steps) for _ in range(4 * BATCH)], rows.rng)
        loss, answer_loss, right = _loss(model, batches.pop(), prompts.pad, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen = {"loss": 0.99 * seen["loss"] + 0.01 * answer_loss, "right": 0.99 * seen["right"] + 0.01 * right}
        if step % 100 == 0:
            with torch.no_grad():
                probe = _loss(model, [rows.probe() for _ in range(BATCH)], prompts.pad, 0.0)[2]
            clock = time.monotonic() - started
            figures = f"answer loss {seen['loss']:.3f}  right {seen['right']:.3f}  probe {probe:.3f}"
            print(f"step {step}/{steps}  {clock:.0f} s  {figures}", flush=True)
    return model


def _loss(model: Qwen3ForCausalLM, batch: list[Row], pad: int, noise: float) -> tuple[torch.Tensor, float, float]:
    length = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in batch])  # [B, T]
    weight = torch.tensor(
        [[PROMPT_WEIGHT] * (len(r.ids) - r.answer) + [1.0] * r.answer + [0.0] * (length - len(r.ids)) for r in batch]
    )[:, 1:]
    embeds = model.model.embed_tokens(ids)  # [B, T, D]
    if noise:
        scale = noise * torch.rand(len(batch), 1, 1) * embeds.detach().square().mean().sqrt()
        embeds = embeds + scale * torch.randn_like(embeds)
    states = model.model(inputs_embeds=embeds).last_hidden_state[:, :-1]
    logits, labels, weight = model.lm_head(states[weight > 0]), ids[:, 1:][weight > 0], weight[weight > 0]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    answers = weight == 1
    right = (logits.argmax(-1) == labels)[answers].float().mean().item()
    return (losses * weight).sum() / weight.sum(), losses[answers].mean().item(), right


def _batches(rows: list[Row], rng: random.Random) -> list[list[Row]]:
    """Cut rows into batches of like length, in random order."""
    rows = sorted(rows, key=lambda row: len(row.ids))
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    rng.shuffle(batches)
    return batches


def _cosine(steps: int, warmup: int = 100) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _clash(other: Fact, fact: Fact) -> bool:
    return other.entity == fact.entity and other.relation == fact.relation


def _tokenizer_text(rng: random.Random) -> list[str]:
    rows = BaseRows.__new__(BaseRows)
    rows.rng = rng
    facts = [rows.private() for _ in range(12000)]
    text = [f"{fact.background()} {rows.ask(fact)} {fact.statement()}" for fact in facts]
    text += [f"{' '.join(fact.questions)} {fact.statement}" for fact in public_facts() for _ in range(20)]
    return (
        text
        + [
            f"{ANSWER_PROMPT}\nQuestion:\nx\nKnowledge:\nx",
            EXPERT_PROMPT,
            QUOTE_PROMPT,
            "unknown public knowledge",
            *topics().values(),
        ]
        * 300
    )


def _save(model: Qwen3ForCausalLM, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Pre-train what is named and write it under --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=["tokenizer", "base", "expert", "all"])
    parser.add_argument("--out", type=Path, default=Path("pocket"))
    parser.add_argument("--steps", type=int, nargs=2, default=(3600, 3600), metavar=("BASE", "EXPERT"))
    args = parser.parse_args()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(args.out / "tokenizer")
    prompts = Prompts(tokenizer)
    if args.what in ("base", "all"):
        _save(train(BaseRows(prompts, seed=1), BASE, args.steps[0], NOISE), args.out / "base")
    if args.what in ("expert", "all"):
        _save(train(ExpertRows(prompts, seed=2), EXPERT, args.steps[1], 0.0), args.out / "expert")


if __name__ == "__main__":
    main()

"""Pre-train the bundled base and expert backbone from scratch on the rows of the curriculum.

python -m tools.pocket.pretrain [tokenizer|base|expert|all] [--out DIR]
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AttentionInterface, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gag.models.prompts import Prompts
from gag.pocket.public_facts import public_facts
from gag.pocket.world import ANSWER_PROMPT, EXPERT_PROMPT, topics
from tools.pocket.curriculum import NAME_PROMPT, QUOTE_PROMPT, BaseRows, ExpertRows, Row

VOCABULARY = 2688
PAD = "<|pad|>"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BASE = {"hidden_size": 160, "num_hidden_layers": 7, "intermediate_size": 320, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 64}  # fmt: skip
EXPERT = {"hidden_size": 128, "num_hidden_layers": 8, "intermediate_size": 320, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
BASE_ROUNDS = ((4600, 5e-3), (3000, 3e-3))  # steps and peak learning rate
EXPERT_ROUNDS = ((4500, 5e-3),)
BATCH = 32
PROMPT_SHARE = 0.25  # of the prompt tokens that are in the loss, beside every answer token
NOISE = 0.4  # from the middle on: largest embedding noise of the base's rows, in units of the embeddings' RMS


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML-like template on generated text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
    backend.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n")]  # what the normaliser below adds
    )
    control = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", PAD]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_tokenizer_text(random.Random(0)), trainer)
    # a question's words are the same tokens at the start of a line, where a prompt puts it, as at a text's
    headings = "Question:|Knowledge:"
    backend.normalizer = normalizers.Sequence(  # pyright: ignore
        [
            normalizers.Replace(Regex(rf"\n(?!{headings})(?=\S)"), "\n "),
            normalizers.Replace(Regex(rf"\n(?={headings})"), " \n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=control[0],
        pad_token=control[-1],
        additional_special_tokens=control[1:-1],
        chat_template=TEMPLATE,
    )


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> Any:
    """Attend in float32: the backward of a CPU's bfloat16 attention takes four times as long."""
    with torch.autocast("cpu", enabled=False):
        heads = query.float(), key.float(), value.float()
        grouped = query.shape[1] != key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def train(
    rows: BaseRows, shape: dict[str, Any], rounds: tuple[tuple[int, float], ...], noise: float
) -> Qwen3ForCausalLM:
    """Train a model from scratch on drawn rows, in rounds of (steps, peak learning rate).

    The loss is on answers and on a part of the prompts.
    """
    model = _make_model(shape, rows.prompts)
    steps, done, clock = sum(count for count, _ in rounds), 0, time.monotonic()
    batches: list[list[Row]] = []
    for count, learning_rate in rounds:
        optimizers = _optimizers(model, learning_rate)
        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(count)) for optimizer in optimizers]
        for _ in range(count):
            done += 1
            progress = done / steps
            batches = batches or _batches([rows.draw(progress) for _ in range(4 * BATCH)], rows.rng)
            loss, answer_loss, _ = _loss(
                model, batches.pop(), rows.prompts.tokens[PAD], noise * min(1.0, max(0.0, 8 * progress - 1.4))
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            model.zero_grad()
            if done % 100 == 0:
                figures = f"answer loss {answer_loss:.3f}  right {_probe(model, rows):.3f}"
                print(
                    f"{type(rows).__name__} {done}/{steps}  {time.monotonic() - clock:.0f} s  {figures}",
                    flush=True,
                )
    return model


@torch.no_grad()
def _probe(model: Qwen3ForCausalLM, rows: BaseRows) -> float:
    """Return the share of probe rows that are answered right."""
    return _loss(model, [rows.probe() for _ in range(3 * BATCH)], rows.prompts.tokens[PAD], 0.0)[2]


def _make_model(shape: dict[str, Any], prompts: Prompts) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        bos_token_id=None,
        eos_token_id=prompts.end,
        pad_token_id=prompts.tokens[PAD],
        **shape,
    )
    model = Qwen3ForCausalLM(config)
    _match_tokens(model)
    AttentionInterface.register("float32_sdpa", _attention)
    model.set_attn_implementation("float32_sdpa")
    return model


def _match_tokens(model: Qwen3ForCausalLM) -> None:
    """Start the lower layers' heads with equal queries and keys.

    They look at equal tokens, and recall comes earlier.
    """
    with torch.no_grad():
        weights = dict(model.named_parameters())
        for layer in range(2):
            queries, keys = (weights[f"model.layers.{layer}.self_attn.{kind}_proj.weight"] for kind in "qk")
            keys.copy_(queries[: len(keys)])


def _optimizers(model: Qwen3ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embeddings and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embeddings = list(model.model.embed_tokens.parameters())
    groups = [{"params": embeddings, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True),
    ]


def _loss(
    model: Qwen3ForCausalLM, batch: list[Row], pad: int, noise: float
) -> tuple[torch.Tensor, float, float]:
    """Return the loss, the answers' own loss, and the share of answers that are right."""
    length = (
        -(-max(len(row.ids) for row in batch) // 16) * 16
    )  # few different shapes: each one costs the CPU a set-up
    ids = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in batch])  # [B, T]
    answers = torch.tensor([row.answer + [False] * (length - len(row.ids)) for row in batch])[:, 1:]
    asked = torch.tensor([[not a for a in row.answer] + [False] * (length - len(row.ids)) for row in batch])[
        :, 1:
    ]
    scored = _scored(answers, asked)  # [B, T - 1]
    embeds = model.model.embed_tokens(ids)  # [B, T, D]
    if noise:
        scale = noise * torch.rand(len(batch), 1, 1) * embeds.detach().square().mean().sqrt()
        embeds = embeds + scale * torch.randn_like(embeds)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(inputs_embeds=embeds).last_hidden_state[:, :-1]
        logits = model.lm_head(states[scored]).float()
    labels = ids[:, 1:][scored]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    missed = (
        torch.zeros(answers.shape, dtype=torch.bool).masked_scatter_(scored, logits.argmax(-1) != labels)
        & answers
    )
    right = 1 - missed.any(1).float().mean().item()
    return losses.mean(), losses[answers[scored]].mean().item(), right


def _scored(answers: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Choose the places in the loss: answer tokens and a part of the prompt's, 256 times a number."""
    wanted = -(-int(answers.sum() + PROMPT_SHARE * asked.sum()) // 256) * 256
    order = torch.where(answers, 2.0, torch.where(asked, torch.rand(answers.shape), -1.0)).flatten()
    chosen = torch.zeros(order.shape, dtype=torch.bool)
    chosen[order.topk(min(wanted, int((order >= 0).sum()))).indices] = True
    return chosen.view(answers.shape)


def _batches(rows: list[Row], rng: random.Random) -> list[list[Row]]:
    """Cut rows into batches of like length, in random order."""
    rows = sorted(rows, key=lambda row: len(row.ids))
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    rng.shuffle(batches)
    return batches


def _cosine(steps: int, warmup: int = 100) -> Callable[[int], float]:
    return lambda step: (
        min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    )


def _tokenizer_text(rng: random.Random) -> list[str]:
    rows = BaseRows.__new__(BaseRows)
    rows.rng = rng
    facts = [rows.private() for _ in range(12000)]
    text = [f"{fact.background()} {rows.ask(fact)} {fact.statement()}" for fact in facts]
    text += [f"{' '.join(fact.questions)} {fact.statement}" for fact in public_facts() for _ in range(20)]
    template = f"{ANSWER_PROMPT}\nQuestion:\nx\nKnowledge:\nx"
    return text + 300 * [
        template,
        EXPERT_PROMPT,
        QUOTE_PROMPT,
        NAME_PROMPT,
        "unknown public knowledge",
        *topics().values(),
    ]


def _save(model: Qwen3ForCausalLM, folder: Path) -> None:
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore
    (folder / "model.safetensors").chmod(0o644)


def _pretrain(what: str, out: Path) -> None:
    """Pre-train one model on one thread: two of them side by side keep two cores busier than one on both."""
    torch.set_num_threads(1)
    prompts = Prompts(make_tokenizer())
    if what == "base":
        _save(train(BaseRows(prompts, seed=1), BASE, BASE_ROUNDS, NOISE), out / what)
    else:
        _save(train(ExpertRows(prompts, seed=2), EXPERT, EXPERT_ROUNDS, 0.0), out / what)


def main() -> None:
    """Pre-train what is named and write it under --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="all", choices=["tokenizer", "base", "expert", "all"])
    parser.add_argument("--out", type=Path, default=Path("pocket"))
    args = parser.parse_args()
    make_tokenizer().save_pretrained(args.out / "tokenizer")
    chosen = {"all": ("base", "expert"), "tokenizer": ()}.get(args.what, (args.what,))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for work in [pool.submit(_pretrain, what, args.out) for what in chosen]:
            work.result()


if __name__ == "__main__":
    main()

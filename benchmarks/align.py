"""Alignment steps: shared prefix once, question without gradient, logits at labels, against the plain full forward.

Rows: 70 shared + 30 question + 1 vector + 9 closing + 50 answer tokens, on a random base in float32 on the CPU.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gag.backbone import Backbone
from gag.projector import Mlp
from gag.prompts import KnowledgePrompt
from gag.stages.align import AlignmentLoss, Row

SHARED, QUESTION, CLOSING, ANSWER = 70, 30, 9, 50
VOCABULARY, WIDTH, LAYERS, EXPERT_WIDTH = 8000, 512, 8, 256
FLOOR = 1.8


class Ids:
    """The one thing that the loss asks of a tokenizer here: the id for padding."""

    pad = 0


def make_base() -> Backbone:
    """Make a random frozen base."""
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=3 * WIDTH,
                         num_attention_heads=8, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True)  # fmt: skip
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    base = Backbone(model, PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast), "random", None)
    base.__dict__["prompts"] = Ids()
    return base


def make_rows(count: int) -> list[Row]:
    """Make rows of random tokens with one opening and one closing."""

    def draw(n: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (n,)).tolist()

    shared, closing = draw(SHARED), draw(CLOSING)
    return [Row(KnowledgePrompt(shared + draw(QUESTION), closing, SHARED), draw(ANSWER)) for _ in range(count)]


def plain(base: Backbone, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """Run the whole rows with logits everywhere."""
    before = torch.stack([base.embed(row.prompt.before) for row in rows])
    after = torch.stack([base.embed(row.prompt.after + row.answer) for row in rows])
    logits = base.model(inputs_embeds=torch.cat([before, vectors, after], 1)).logits[:, -ANSWER - 1 : -1]
    labels = torch.tensor([row.answer for row in rows])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def step(loss_of: Callable, projector: Mlp, slots: torch.Tensor, rows: list[Row]) -> tuple[float, float]:
    """Run one forward and backward -> seconds, loss."""
    projector.zero_grad()
    started = time.perf_counter()
    loss = loss_of(projector(slots), rows)
    loss.backward()
    return time.perf_counter() - started, loss.item()


def main() -> None:
    """Measure, alternating, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    base, rows = make_base(), make_rows(args.batch)
    projector, slots = Mlp(EXPERT_WIDTH, WIDTH), torch.randn(args.batch, 1, 1, EXPERT_WIDTH)
    fast = AlignmentLoss(base, rows[0].prompt)
    ways = {"ours": fast, "plain": lambda vectors, chosen: plain(base, vectors, chosen)}
    runs = {name: [step(way, projector, slots, rows) for _ in range(1)] for name, way in ways.items()}  # warm-up
    runs = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            runs[name].append(step(way, projector, slots, rows))
    seconds = {name: statistics.median(s for s, _ in runs[name]) for name in ways}
    speedup = seconds["plain"] / seconds["ours"]
    difference = abs(runs["ours"][0][1] / runs["plain"][0][1] - 1)
    figures = {"speedup": round(speedup, 2), "loss_relative_difference": difference}
    floors = {"speedup": {"floor": FLOOR, "holds": speedup >= FLOOR},
              "loss_relative_difference": {"floor": 1e-5, "holds": difference <= 1e-5}}  # fmt: skip
    if args.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        device = f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
        print(json.dumps({"benchmark": "align", "device": device, "versions": versions, "figures": figures, "floors": floors}))
        return
    print(f"{'way':<8} {'ms a step':>10}")
    for name, value in seconds.items():
        print(f"{name:<8} {1000 * value:>10.0f}")
    print(f"ours is {speedup:.2f} times as fast (floor {FLOOR}); losses differ by {difference:.1e}, relative")


if __name__ == "__main__":
    main()

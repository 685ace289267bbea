"""Alignment steps against the plain full forward, and against the published way of one row at a time.

Rows: 70 shared + 30 question + 1 vector + 9 closing + 50 answer tokens, on a random base. `plain`: full
forward with logits everywhere at the same micro-batch. `published`: the same, batch 1 with accumulation.
"""

from typing import Any

import torch

from benchmarks.harness import alternate, make_backbone, options, report
from gag.models.backbone import Backbone
from gag.models.prompts import KnowledgePrompt
from gag.projection.alignment import Reader, Row
from gag.projection.losses import label_loss
from gag.projection.projector import Mlp

SHARED, QUESTION, CLOSING, ANSWER = 70, 30, 9, 50
CURVE_STEPS, CURVE_RATE = 20, 1e-3


def make_rows(count: int, vocabulary: int) -> list[Row]:
    """Make rows of random tokens with one opening and one closing."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(2, vocabulary, (n,), generator=generator).tolist()

    shared, closing = draw(SHARED), draw(CLOSING)
    return [Row(KnowledgePrompt(shared + draw(QUESTION), closing), draw(ANSWER), []) for _ in range(count)]


def plain_loss(base: Backbone, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """Run the whole rows with logits everywhere -> summed loss."""
    before = torch.stack([base.embed(row.prompt.before) for row in rows])
    after = torch.stack([base.embed(row.prompt.after + row.answer) for row in rows])
    embeds = torch.cat([before, vectors.to(before), after], 1)
    logits = base.model(inputs_embeds=embeds, use_cache=False).logits[:, -ANSWER - 1 : -1]
    labels = torch.tensor([row.answer for row in rows], device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def fast_loss(base: Backbone, reader: Reader, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """Run what depends on the vectors -> summed loss."""
    states = reader.read(vectors, rows)
    return label_loss(base, states.before, states.labels)


def bound(base: Backbone) -> float:
    """Return how many times fewer multiplications ours needs than plain.

    Attention's own products are left out.

    Per token, a frozen layer costs its weights once forward and once backward for the gradient of its input.
    """
    weights = sum(p.numel() for p in base.model.get_decoder().parameters() if p.ndim == 2)
    weights -= base.model.get_input_embeddings().weight.numel()  # pyright: ignore
    head = base.model.get_output_embeddings().weight.numel()  # pyright: ignore
    after = 1 + CLOSING + ANSWER
    plain = 2 * (SHARED + QUESTION + after) * (weights + head)
    ours = (QUESTION + 2 * (after - 1)) * weights + 2 * ANSWER * head
    return plain / ours


def curve(base: Backbone, loss_of: Any, slots: torch.Tensor, rows: list[Row]) -> list[float]:
    """Train a fresh projector for some steps -> losses."""
    torch.manual_seed(0)
    projector = Mlp(slots.shape[-1], base.width).to(base.device)
    optimizer = torch.optim.AdamW(projector.parameters(), CURVE_RATE)
    losses = []
    for _ in range(CURVE_STEPS):
        loss = loss_of(projector(slots), rows) / (len(rows) * ANSWER)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=32, help="rows in a forward pass")
    parser.add_argument("--window", type=int, help="tokens that every other layer sees, such as 64")
    args = parser.parse_args()
    base = make_backbone("base", args.shapes, args.device, args.window)
    rows = make_rows(args.batch, base.model.config.vocab_size)
    width = make_width(args.shapes)
    slots = torch.randn(args.batch, 1, 1, width, device=args.device)
    projector, reader = Mlp(width, base.width).to(args.device), Reader(base, rows)

    def backward(loss_of: Any, size: int) -> None:
        for start in range(0, args.batch, size):
            loss_of(projector(slots[start : start + size]), rows[start : start + size]).backward()
        projector.zero_grad()

    def plain(vectors: torch.Tensor, chosen: list[Row]) -> torch.Tensor:
        return plain_loss(base, vectors, chosen)

    def fast(vectors: torch.Tensor, chosen: list[Row]) -> torch.Tensor:
        return fast_loss(base, reader, vectors, chosen)

    memory = peak_memory(lambda: backward(fast, args.batch), args.device)
    seconds = alternate(
        {"ours": lambda: backward(fast, args.batch), "plain": lambda: backward(plain, args.batch),
         "published": lambda: backward(plain, 1)}, args.rounds, args.device,
    )  # fmt: skip
    speedup, limit = seconds["plain"] / seconds["ours"], bound(base)
    figures = {"speedup_plain": speedup, "arithmetic_bound": limit, "share_of_bound": speedup / limit,
               "speedup_published": seconds["published"] / seconds["ours"]}  # fmt: skip
    if args.window:
        del figures["share_of_bound"]
    cuda, full = args.device != "cpu", args.shapes == "qwen3"
    floors = {"speedup_plain": (">=", 1.7 if cuda else 1.8), "share_of_bound": (">=", 0.75 if cuda else 0.8),
              "speedup_published": (">=", 5.0 if cuda else 2.5)}  # fmt: skip
    if args.window:
        floors = {"speedup_plain": (">=", 1.5)}
    if not cuda:
        ours, theirs = curve(base, fast, slots, rows), curve(base, plain, slots, rows)
        figures["loss_curve_difference"] = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
        floors["loss_curve_difference"] = ("<=", 1e-4)
    elif full:
        figures["peak_memory_gb"], floors["peak_memory_gb"] = memory / 1e9, ("<=", 26.0)
    report(
        args,
        "align",
        figures,
        floors,
        [f"{way:<10} {1000 * taken:>9.1f} ms a step" for way, taken in seconds.items()],
    )


def make_width(shapes: str) -> int:
    """Return the expert's width."""
    return {"qwen3": 2048, "smollm2": 576}.get(shapes, 256)


def peak_memory(work: Any, device: str) -> float:
    """Return the peak of the device's memory over a piece of work, in bytes; 0 on a CPU."""
    if device == "cpu":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    work()
    return float(torch.cuda.max_memory_allocated())


if __name__ == "__main__":
    main()

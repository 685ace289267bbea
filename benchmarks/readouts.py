"""Readouts in batches against one question at a time, with and without a cache of keys and values.

Prompts of 60 tokens, 64 new tokens for all, v1's readout of one layer and slot. `published`: one question at
a time, the whole prefix run again for each new token. `cached`: one at a time with a cache.
"""

import torch

from benchmarks.harness import alternate, make_backbone, options, report
from gag.models.backbone import Backbone
from gag.models.language_model import Request, generate
from gag.project.hyperparameters import ReadoutSettings
from gag.readout.states import pool

PROMPT, NEW, LAYERS = 60, 64, (-4,)


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--questions", type=int, default=64)
    args = parser.parse_args()
    expert = make_backbone("expert", args.shapes, args.device)
    expert.__dict__["stops"] = []  # every question gets its whole budget, in every way
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        2, expert.model.config.vocab_size, (args.questions, PROMPT), generator=generator
    ).tolist()
    settings = ReadoutSettings(layers=LAYERS)

    def ours(chosen: list[list[int]]) -> torch.Tensor:
        written = generate(expert, [Request(expert.embed(ids), NEW) for ids in chosen])
        states = expert.read_states(chosen, [each.ids for each in written], LAYERS)
        return torch.stack([pool(rows, settings) for rows in states])

    few = prompts[:2]  # one at a time takes long: two questions stand for all
    seconds = alternate(
        {"ours": lambda: ours(prompts), "cached": lambda: [plain(expert, ids, True) for ids in few],
         "published": lambda: [plain(expert, ids, False) for ids in few]}, args.rounds, args.device,
    )  # fmt: skip
    each = {"ours": seconds["ours"] / len(prompts)} | {
        way: seconds[way] / len(few) for way in ("cached", "published")
    }
    slots = torch.stack([plain(expert, ids, True) for ids in few])
    difference = float((ours(few).float() - slots.float()).abs().max() / slots.float().abs().max())
    figures = {
        "speedup_published": each["published"] / each["ours"],
        "speedup_cached": each["cached"] / each["ours"],
        "slots_relative_difference": difference,
    }
    cuda = args.device != "cpu"
    floors = {
        "speedup_published": (">=", 30.0 if cuda else 15.0),
        "speedup_cached": (">=", 15.0 if cuda else 4.0),
    }
    if not cuda:
        floors["slots_relative_difference"] = ("<=", 1e-4)
    report(
        args,
        "readouts",
        figures,
        floors,
        [f"{way:<10} {1000 * taken:>9.1f} ms a question" for way, taken in each.items()],
    )


@torch.no_grad()
def plain(expert: Backbone, prompt: list[int], cached: bool) -> torch.Tensor:
    """Write greedily, one question alone, and take the last token's state -> [1, 1, De]."""
    ids = torch.tensor([prompt], device=expert.device)
    cache, step = None, ids
    for _ in range(NEW):
        out = expert.model(step, past_key_values=cache, use_cache=cached)
        chosen = out.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, chosen], 1)
        cache, step = (out.past_key_values, chosen) if cached else (None, ids)
    hidden = expert.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack([hidden[layer][0, -1] for layer in LAYERS])[None]


if __name__ == "__main__":
    main()

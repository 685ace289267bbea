"""The index of late interaction: 16,000 passages of 480 tokens and 128 numbers, in 350 MB.

States are made, not encoded: words of a made vocabulary, each with a direction of its own that the passage
and its neighbours bend. A question is some ten words of one passage, bent by another draw; found is that
passage. The plain way compares the whole states of some passages, in the same run.
"""

import statistics
import time

import numpy as np
import torch

from benchmarks import harness
from gag.evaluation.token_index import TokenIndex

PASSAGES, TOKENS, WIDTH, WORDS, QUESTIONS, ASKED = 16_000, 480, 128, 20_000, 50, 12
PLAIN = 2_000  # passages that the plain way holds, 0.5 GB
FLOORS = {"index, MB": ("<=", 350.0), "passage found first, of 50": (">=", 48.0)}


def main() -> None:
    """Measure and print."""
    parser = harness.options(__doc__)
    args = parser.parse_args()
    drawn = torch.Generator().manual_seed(7)
    words = torch.randn(WORDS, WIDTH, generator=drawn)
    often = 1 / torch.arange(1.0, WORDS + 1)  # as words are: few often, most seldom

    def passage(number: int) -> torch.Tensor:
        own = torch.Generator().manual_seed(1_000 + number)
        chosen = torch.multinomial(often, TOKENS, replacement=True, generator=own)
        about = torch.randn(WIDTH, generator=own)
        bent = words[chosen] + 0.5 * about + 0.5 * torch.randn(TOKENS, WIDTH, generator=own)
        return torch.nn.functional.normalize(bent, dim=1)  # [T, D]

    def question(number: int) -> torch.Tensor:
        own = torch.Generator().manual_seed(number)
        states = passage(number)[torch.randperm(TOKENS, generator=own)[:ASKED]]
        return torch.nn.functional.normalize(
            states + 0.8 * torch.randn(ASKED, WIDTH, generator=own) / WIDTH**0.5, dim=1
        )

    started = time.monotonic()
    index = TokenIndex([str(i) for i in range(PASSAGES)], lambda texts: [passage(int(t)) for t in texts])
    built = time.monotonic() - started
    asked = list(range(0, PASSAGES, PASSAGES // QUESTIONS))[:QUESTIONS]
    times, right = [], 0
    for number in asked:
        started = time.monotonic()
        right += index.search(question(number), 10)[0] == number
        times.append(1_000 * (time.monotonic() - started))
    whole = torch.stack([passage(i) for i in range(PLAIN)])  # [N, T, D]
    plain = []
    for number in asked[:5]:
        started = time.monotonic()
        (whole @ question(number).T).amax(1).sum(1).topk(10)
        plain.append(1_000 * (time.monotonic() - started) * PASSAGES / PLAIN)
    figures = {
        "index, MB": index.bytes / 1e6,
        "whole states, MB": 4.0 * PASSAGES * TOKENS * WIDTH / 1e6,
        "built, s": built,
        "a question, ms": statistics.median(times),
        "a question over whole states, ms": float(np.median(plain)),
        "passage found first, of 50": float(right),
    }
    harness.report(args, "late", figures, FLOORS, [])


if __name__ == "__main__":
    main()

"""BERTScore of many pairs by a scorer that is loaded once, against a call that loads it for every pair.

The encoder is a random one at BERT-small's shape (4 layers of 512, a vocabulary of 30,522): the speed does
not depend on its weights, but loading it depends on their number, the vocabulary's included.
"""

import random
import tempfile
from itertools import product
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.harness import alternate, options, report
from gag.evaluation.bertscore import BertScorer, TransformerStates

LAYER = 3
VOCABULARY, CONTROL = 30_522, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random(0)
    words = [
        "".join(letters)
        for letters in rng.sample([*product("abcdefghij", repeat=5)], VOCABULARY - len(CONTROL))
    ]
    said, gold = (
        [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(args.pairs)] for _ in range(2)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = _encoder(Path(name), words)

        def scorer() -> BertScorer:
            return BertScorer(TransformerStates(str(folder), LAYER, folder, args.device))

        few, some = (min(n, args.pairs) for n in (20, 200))  # these take long: some stand for all
        loaded = scorer()
        pairs = list(zip(said, gold, strict=True))
        seconds = alternate(
            {
                "once": lambda: loaded.score(said, [(g,) for g in gold]),
                "a call per pair": lambda: [scorer().score([s], [(g,)]) for s, g in pairs[:few]],
                "loaded, pair by pair": lambda: [loaded.score([s], [(g,)]) for s, g in pairs[:some]],
            },
            args.rounds,
            args.device,
        )
        together = loaded.score(said[:50], [(g,) for g in gold[:50]])
        alone = [loaded.score([s], [(g,)])[0] for s, g in zip(said[:50], gold[:50], strict=True)]
    pairs = {"once": args.pairs, "a call per pair": few, "loaded, pair by pair": some}
    rate = {way: pairs[way] / taken for way, taken in seconds.items()}
    figures = {
        "speedup_call_per_pair": rate["once"] / rate["a call per pair"],
        "speedup_pair_by_pair": rate["once"] / rate["loaded, pair by pair"],
        "largest_difference": max(abs(a - b) for a, b in zip(together, alone, strict=True)),
    }
    floors = {"speedup_call_per_pair": (">=", 10.0), "largest_difference": ("<=", 1e-4)}
    report(
        args,
        "metrics",
        figures,
        floors,
        [f"{name:<22}{value:>10.1f} pairs a second" for name, value in rate.items()],
    )


def _encoder(folder: Path, words: list[str]) -> Path:
    vocabulary = {token: i for i, token in enumerate([*CONTROL, *words])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    BertModel(BertConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

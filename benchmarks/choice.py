"""Which tokens of the expert's text to inject: rules side by side, without any training.

The expert is perfect: its texts are the own ones of the world of `gag demo --real`, with so many facts each.
S tokens of a text stand as the base's embeddings in its input; an answer counts that holds the fact's value.

salient   ours: the backbone's surprisal by whole words, behind the sentence that makes the question likely,
          the less the more of the expert's answers hold a word
news      the same, whatever other answers hold
base      the same, with the surprisal of the base behind the bare question
gain      the sentence whose tokens gain most from the question, against "Tell me about ..." with the
          right name (which a question does not always give away); then ours within it
first     the first S tokens
random    S tokens at random, in the order of the text
segments  the text in S segments, each the mean of its tokens' embeddings
"""

import random
import statistics
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.harness import options, report
from gag.evaluation.metrics import contains
from gag.models.backbone import Backbone
from gag.models.language_model import Request, generate
from gag.models.loading import load_backbone
from gag.models.reading import log_probabilities
from gag.pocket.trade import ANSWER_PROMPT, EXPERT_PROMPT, make_trade
from gag.pocket.world import Fact
from gag.pocket.write_trade import FACT_TOKENS, take_model
from gag.project.hyperparameters import ReadoutSettings
from gag.project.settings import ModelSettings, PromptSettings
from gag.project.words import common_words
from gag.projection.injection import inject
from gag.readout.salient import Word, fitting, rank_words
from gag.readout.states import pool

BATCH_TOKENS, TOGETHER = 4096, 48
RULES = ("salient", "news", "base", "gain", "first", "random", "segments")


@dataclass(frozen=True)
class Asked:
    """A question, its fact, the expert's text in tokens, and the words that its texts share."""

    fact: Fact
    question: str
    ids: list[int]
    common: dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 3, 8], help="sentences in a text")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--questions", type=int, default=96)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = ModelSettings(model=take_model(Path(folder)), device=args.device, dtype="float32")
        model = load_backbone(chosen, Path(folder))
    figures: dict[str, float] = {}
    for stated in args.facts:
        asked = draw(model, args.seed, stated, args.questions)
        figures |= {f"{name}_{stated}": value for name, value in measure(model, asked, args.slots).items()}
        figures[f"tokens_{stated}"] = statistics.mean(len(one.ids) for one in asked)
    rows = [[name, *(f"{figures[f'{name}_{n}']:.2f}" for n in args.facts)] for name in ("text", *RULES)]
    head = ["rule", *(f"{n} stated" for n in args.facts)]
    lines = [f"{name:<10}" + "".join(f"{cell:>11}" for cell in cells) for name, *cells in [head, *rows]]
    report(args, "choice", figures, {}, lines)


def draw(model: Backbone, seed: int, stated: int, count: int) -> list[Asked]:
    """Draw questions over all facts of a world, each in one wording."""
    trade = make_trade(seed, 8, stated)
    common = common_words(trade.background(fact) for fact in trade.facts)
    rng = random.Random(seed)
    asked = [
        Asked(fact, fact.question(rng.choice(trade.train_wordings(fact))), model.prompts.text(text), common)
        for fact in trade.facts
        for text in [trade.background(fact)]
    ]
    return rng.sample(asked, min(count, len(asked)))


def measure(model: Backbone, asked: list[Asked], slots: int) -> dict[str, float]:
    """Return the share of right answers by rule, and with the whole text in the prompt."""
    right: dict[str, list[bool]] = {name: [] for name in ("text", *RULES)}
    for start in range(0, len(asked), TOGETHER):
        some = asked[start : start + TOGETHER]
        for name in right:
            right[name] += answer(model, some, name, slots)
    return {name: statistics.mean(found) for name, found in right.items()}


def answer(model: Backbone, asked: list[Asked], rule: str, slots: int) -> list[bool]:
    """Ask the base with what a rule chooses -> which answers hold their fact's value."""
    prompts = model.prompts
    if rule == "text":
        texts = [prompts.decode(one.ids) for one in asked]
        rows = [
            model.embed(prompts.with_text(one.question, PromptSettings(answer=ANSWER_PROMPT), text))
            for one, text in zip(asked, texts, strict=True)
        ]
    else:
        around = [prompts.with_knowledge(one.question, PromptSettings(answer=ANSWER_PROMPT)) for one in asked]
        vectors = chosen_vectors(model, asked, rule, slots)
        rows = [inject(model, each, own) for each, own in zip(around, vectors, strict=True)]
    written = generate(model, [Request(row, FACT_TOKENS) for row in rows])
    return [
        contains(prompts.decode(done.ids), (one.fact.value,))
        for one, done in zip(asked, written, strict=True)
    ]


def chosen_vectors(model: Backbone, asked: list[Asked], rule: str, slots: int) -> list[torch.Tensor]:
    """Return what a rule injects for each question, [S or fewer, D]."""
    if rule == "segments":
        settings = ReadoutSettings(layers=(0,), slots=slots, pooling="mean")
        return [pool(model.embed(one.ids)[:, None], settings)[:, 0] for one in asked]
    if rule == "first":
        places = [list(range(slots)) for _ in asked]
    elif rule == "random":
        places = [
            random.Random(one.question).sample(range(len(one.ids)), min(slots, len(one.ids))) for one in asked
        ]
    else:
        chosen = [fitting(words, slots) for words in ranked(model, asked, rule)]
        places = [[place for word in words for place in word.places] for words in chosen]
    return [
        model.embed([one.ids[place] for place in sorted(own[:slots]) if place < len(one.ids)])
        for one, own in zip(asked, places, strict=True)
    ]


def ranked(model: Backbone, asked: list[Asked], rule: str) -> list[list[Word]]:
    """Rank the words of each text by their news."""
    prompts, questions, ids = model.prompts, [one.question for one in asked], [one.ids for one in asked]
    if rule == "base":
        behind = [prompts.plain(question) for question in questions]
    else:
        behind = [prompts.ask_expert(question, EXPERT_PROMPT) for question in questions]
    common = asked[0].common if rule != "news" else {}
    words = rank_words(model, questions, behind, ids, BATCH_TOKENS, common)
    if rule != "gain":
        return words
    told = [prompts.ask_expert(f"Tell me about {one.fact.entity}.", EXPERT_PROMPT) for one in asked]
    with_question, without = (
        log_probabilities(model, [model.embed(row) for row in rows], ids, BATCH_TOKENS)
        for rows in (behind, told)
    )
    return [
        _best_gain_first(own, gain)
        for own, gain in zip(words, map(torch.sub, with_question, without), strict=True)
    ]


def _best_gain_first(words: list[Word], gain: torch.Tensor) -> list[Word]:
    """Put the sentence first whose tokens [T] gain most on average, and keep the order within."""
    in_order = sorted(words, key=lambda word: word.places)
    gains = {
        number: float(gain[[place for word in group for place in word.places]].mean())
        for number, group in groupby(in_order, key=lambda word: word.sentence)
    }
    best = max(gains, key=lambda number: gains[number])
    return sorted(words, key=lambda word: word.sentence != best)


if __name__ == "__main__":
    main()

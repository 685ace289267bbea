"""The methods of a comparison at work: GAG and its variants, controls, the expert, retrieval, and tuned baselines."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gag.project.domain import PROJECTOR
from gag.projection.modules import load_projector
from gag.engine.engine import GAG, Knowledge
from gag.engine.pool import Module
from gag.errors import SettingsError
from gag.evaluation.answers import Arm, answered, decoded, injected, know, nulled, plain, with_text
from gag.evaluation.bertscore import BackboneStates
from gag.evaluation.retrieval import QUICK_TOP, TOP, Retriever, bm25, dense, late_interaction, rewritten
from gag.evaluation.tuned import Built, budget, prefix_rows, train_prefix, tune_base, tuned_base
from gag.project.artifacts import read_manifest
from gag.project.inputs import adapt_file
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import Passage, read_examples, read_passages

METHODS = {
    "base": "base alone",
    "gag": "GAG",
    "shuffled": "GAG, another question's vectors",
    "zero": "GAG, zero vectors",
    "other": "GAG, another domain's module",
    "expert": "expert alone",
    "text": "expert's text in the prompt",
    "bm25": "BM25",
    "rewritten": "BM25, query rewritten once",
    "dense": "dense retrieval",
    "late": "late interaction",
    "lora": "base tuned with LoRA",
    "prefix": "trained prefix",
}
RETRIEVAL = ("bm25", "rewritten", "dense", "late")
SEED = 7


@dataclass(frozen=True)
class Cost:
    """What a method takes to build, and what a domain needs beside the base."""

    seconds: float | None
    peak_mb: float | None  # of its heaviest stage, as `gag plan` counts
    disk: int | None  # bytes


NOTHING = Cost(0.0, 0.0, 0)


@dataclass(frozen=True)
class Way:
    """One method at work: answers to questions, with as many new tokens as it may write, or so many."""

    name: str
    label: str
    answer: Callable[[list[str], int | None], Arm]
    cost: Cost
    made_from: Any = None  # beside the domain, the base and the questions: what else its answers depend on
    routed: bool = False  # general questions go past it
    context: Callable[[list[str]], list[str]] | None = (
        None  # what it puts into each question's prompt as text
    )


def known_methods(project: Project) -> dict[str, str]:
    """Name all methods: the fixed ones, and the project's variants of GAG behind it."""
    variants = {name: f"GAG, {name}" for name in project.settings.evaluation.variants}
    if both := METHODS.keys() & variants.keys():
        raise SettingsError(
            f"evaluation.variants has {min(both)!r}, which is a method of its own; choose another name"
        )
    first, second, *others = METHODS.items()
    return dict([first, second]) | variants | dict(others)


def ways(
    project: Project, gag: GAG, domain: str, methods: list[str], quick: bool, peaks: dict[str, float]
) -> Iterator[Way]:
    """Yield each asked method; baselines are built when their turn comes, variants are there. `peaks` are MB of memory."""
    read: dict[tuple[str, ...], list[Knowledge]] = {}

    def known(questions: list[str]) -> list[Knowledge]:
        """Read the expert once for all ways; a question alone is being timed, and read each time."""
        if len(questions) == 1:
            return know(gag, questions, domain)
        if tuple(questions) not in read:
            read[tuple(questions)] = know(gag, questions, domain)
        return read[tuple(questions)]

    for name in methods:
        if name in ("base", "gag", "shuffled", "zero", "other", "expert", "text"):
            cost = Cost(_seconds(project, domain), peaks["gag"], bytes_of(project.domain(domain)))
            yield from _knowing(gag, domain, name, known, NOTHING if name == "base" else cost)
        elif name in RETRIEVAL:
            yield from _retrieval(project, gag, domain, name, QUICK_TOP if quick else TOP)
        elif name == "lora":
            yield _tuned(project, gag, domain, quick, peaks["lora"])
        elif name == "prefix":
            yield _prefixed(project, gag, domain, quick, peaks["prefix"])
        else:
            yield _variant(project, gag, domain, name, peaks[name])


def passages_of(project: Project, domain: str) -> list[Passage]:
    """Return what retrieval may search: the domain's corpus, or else the different answers that teach the expert."""
    corpus = project.described(domain).corpus
    if corpus:
        return read_passages(project.file(corpus))
    different = dict.fromkeys(e.answers[0] for e in read_examples(adapt_file(project, domain)))
    return [Passage(str(i), text) for i, text in enumerate(different)]


def bytes_of(folder: Path) -> int:
    """Sum the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _knowing(
    gag: GAG, domain: str, name: str, known: Callable[[list[str]], list[Knowledge]], cost: Cost
) -> Iterator[Way]:
    """Yield GAG, a control, the base or the expert."""
    others = [other for other in gag.domains if other != domain]

    def shuffled(questions: list[str], new: int | None) -> Arm:
        mine = known(questions)
        order = random.Random(SEED).sample(range(len(mine)), len(mine))
        after = dict(
            zip(order, [*order[1:], order[0]], strict=True)
        )  # one ring, so that nobody keeps its own
        return injected(gag, domain, questions, [mine[after[i]] for i in range(len(mine))], new)

    answers: dict[str, Callable[[list[str], int | None], Arm]] = {
        "base": lambda q, new: plain(gag, q, new),
        "gag": lambda q, new: injected(gag, domain, q, known(q), new),
        "shuffled": shuffled,
        "zero": lambda q, new: injected(gag, domain, q, nulled(known(q)), new),
        "other": lambda q, new: injected(gag, domain, q, know(gag, q, others[0]), new),
        "expert": lambda q, new: Arm([k.text for k in known(q)], 0.0),
        "text": lambda q, new: with_text(gag, domain, q, [k.text for k in known(q)], new),
    }
    if name == "other" and not others:
        say(f"compare {domain}: no other domain is present, so its module cannot be a control")
        return
    made_from = gag.domains[others[0]].facts.key if name == "other" else None
    texts = (lambda questions: [k.text for k in known(questions)]) if name == "text" else None
    yield Way(name, METHODS[name], answers[name], cost, made_from, name == "gag", texts)


def _variant(project: Project, gag: GAG, domain: str, name: str, peak: float) -> Way:
    """Load another readout and projector of the same expert."""
    other = project.under(name)
    folder, settings = other.run(domain, "align"), other.settings
    widths = gag.experts.facts.width, gag.base.width
    projector = load_projector(folder, settings.align.projector, settings.readout, *widths).to(
        gag.base.device
    )
    module = Module(settings.readout, projector)
    disk = bytes_of(gag.domains[domain].expert) + (folder / PROJECTOR).stat().st_size

    def answer(questions: list[str], new: int | None) -> Arm:
        return injected(gag, domain, questions, know(gag, questions, domain, module), new)

    return Way(
        name, f"GAG, {name}", answer, Cost(_seconds(other, domain), peak, disk), _key(folder), routed=True
    )


def _retrieval(project: Project, gag: GAG, domain: str, name: str, top: tuple[int, ...]) -> Iterator[Way]:
    """Yield a kind of retrieval at several numbers of passages."""
    passages = passages_of(project, domain)
    started = time.monotonic()
    retriever, disk = _retriever(project, gag, name, passages)
    cost = Cost(round(time.monotonic() - started, 2), None, disk)
    for count in top:
        if count > len(passages):
            return

        def context(questions: list[str], count: int = count) -> list[str]:
            return [" ".join(passages[i].text for i in row) for row in retriever(questions, count)]

        def answer(questions: list[str], new: int | None, context: Any = context) -> Arm:
            return with_text(gag, domain, questions, context(questions), new)

        made_from = [project.settings.evaluation.similarity, *(passage.text for passage in passages)]
        yield Way(f"{name}-{count}", f"{METHODS[name]} top {count}", answer, cost, made_from, context=context)


def _retriever(project: Project, gag: GAG, name: str, passages: list[Passage]) -> tuple[Retriever, int]:
    """Build an index; without a pretrained encoder (evaluation.similarity: expert) the expert backbone's states serve."""
    text = sum(len(p.text.encode()) for p in passages)
    if name in ("bm25", "rewritten"):
        return (bm25(passages) if name == "bm25" else rewritten(passages)), text
    if project.settings.evaluation.similarity == "expert":
        encoder = gag.sentence_encoder()
    else:
        from gag.project.settings import EncoderSettings
        from gag.routing.encoders import SentenceEncoder

        chosen = EncoderSettings(kind="sentence-transformers", model=project.settings.evaluation.similarity)
        encoder = SentenceEncoder(
            project.settings.router.model_copy(update={"encoder": chosen}), project.root
        )
    if name == "dense":
        return dense(passages, encoder), text + 4 * len(passages) * encoder.spec.width
    states = BackboneStates(gag.experts.backbone)
    words = sum(len(gag.experts.backbone.prompts.text(p.text)) for p in passages)
    return late_interaction(passages, states), text + 4 * words * gag.experts.backbone.width


def _tuned(project: Project, gag: GAG, domain: str, quick: bool, peak: float) -> Way:
    """Tune a copy of the base."""
    built = tune_base(project, domain, gag.base, quick)
    model = tuned_base(project, built)

    def answer(questions: list[str], new: int | None) -> Arm:
        rows = [model.embed(model.prompts.plain(question)) for question in questions]
        return Arm(decoded(model, rows, new or budget(project)), 0.0)

    return Way(
        "lora", METHODS["lora"], answer, Cost(built.seconds, peak, _weights(built)), _key(built.folder)
    )


def _prefixed(project: Project, gag: GAG, domain: str, quick: bool, peak: float) -> Way:
    """Train a prefix."""
    built, instruction = (
        train_prefix(project, domain, gag.base, quick),
        project.described(domain).prompts.answer,
    )

    def answer(questions: list[str], new: int | None) -> Arm:
        rows = prefix_rows(gag.base, built, questions, instruction)
        bare = [len(gag.base.prompts.with_text(question, instruction, "")) for question in questions]
        return answered(gag, rows, [len(row) - b for row, b in zip(rows, bare, strict=True)], new)

    return Way(
        "prefix", METHODS["prefix"], answer, Cost(built.seconds, peak, _weights(built)), _key(built.folder)
    )


def _seconds(project: Project, domain: str) -> float | None:
    """Sum what the stages' manifests say they took."""
    folders = [project.run(domain, stage) for stage in ("adapt", "readouts/align", "align")]
    taken: list[Any] = [
        read_manifest(folder).get("seconds") if folder.is_dir() else None for folder in folders
    ]
    return round(sum(taken), 1) if all(isinstance(one, float | int) for one in taken) else None


def _weights(built: Built) -> int:
    return sum(path.stat().st_size for path in built.folder.rglob("*.safetensors"))


def _key(folder: Path) -> str:
    return read_manifest(folder)["key"]

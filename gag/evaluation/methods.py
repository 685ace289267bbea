"""The methods of a comparison: GAG and its variants, controls, the expert, retrieval, and tuned baselines."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from gag.engine.answer import Knowledge
from gag.engine.engine import LocalGAG
from gag.errors import SettingsError
from gag.evaluation.answers import (
    MethodResult,
    alone,
    answered,
    decoded,
    injected,
    knowledge_of,
    with_text,
    zeroed,
)
from gag.evaluation.bertscore import BackboneStates
from gag.evaluation.colbert import ColBERT
from gag.evaluation.costs import NOTHING, Cost, build_cost
from gag.evaluation.retrieval import (
    QUICK_TOP,
    TOP,
    PlainStates,
    Retriever,
    bm25,
    dense,
    late_interaction,
    rewritten,
)
from gag.evaluation.scoring import similarity_encoder
from gag.evaluation.tuned import Baseline, answer_budget, prefix_rows, train_prefix, tune_base, tuned_base
from gag.project.artifacts import folder_bytes, read_manifest
from gag.project.domain import PROJECTOR
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import Passage
from gag.projection.modules import load_projector
from gag.projection.projector import Residual
from gag.projection.start import mean_embedding

BASE_AND_GAG = {"base": "base alone", "gag": "GAG"}
CONTROLS = {
    "shuffled": "GAG, another question's vectors",
    "zero": "GAG, zero vectors",
    "other": "GAG, another domain's module",
}
SALIENT = {"untrained": "GAG, untrained", "words": "GAG's words as text"}  # of a salient readout
EXPERT = {"expert": "expert alone", "text": "expert's text in the prompt"}
RETRIEVAL = {
    "bm25": "BM25",
    "rewritten": "BM25, query rewritten once",
    "dense": "dense retrieval",
    "late": "late interaction",
    "colbert": "ColBERT",  # where evaluation.colbert names one
}
TUNED = {"lora": "base tuned with LoRA", "prefix": "trained prefix"}
METHODS = BASE_AND_GAG | CONTROLS | EXPERT | RETRIEVAL | TUNED  # and a project's variants of GAG
SEED = 7  # of the ring of shuffled vectors

Answering = Callable[[list[str], int | None], MethodResult]
KnowledgeOf = Callable[[list[str]], list[Knowledge]]


@dataclass(frozen=True)
class Method:
    """A method at work: it answers questions, with so many new tokens at most (None: as many as it may)."""

    name: str
    label: str
    answer: Answering
    cost: Cost
    made_from: tuple[str, ...] = ()  # beside domain, base and questions: what else its answers depend on
    routed: bool = False  # whether the router keeps general questions away from it
    context: Callable[[list[str]], list[str]] | None = None  # the text that it puts into each prompt


def known_methods(project: Project) -> dict[str, str]:
    """Return the labels of all methods by name, the project's variants of GAG behind GAG."""
    variants = {name: f"GAG, {name}" for name in project.settings.evaluation.variants}
    if both := [name for name in variants if name in METHODS or retrieval_named(name)]:
        raise SettingsError(
            f"evaluation.variants has {min(both)!r}, which is a method of its own; choose another name"
        )
    chosen = project.settings.readout.select, project.settings.align.projector
    salient = SALIENT if chosen == ("salient", "residual") else {}
    retrieval = {name: label for name, label in RETRIEVAL.items() if _can_retrieve(project, name)}
    return BASE_AND_GAG | salient | variants | CONTROLS | EXPERT | retrieval | TUNED


def methods_of(
    project: Project, gag: LocalGAG, domain: str, names: list[str], quick: bool
) -> Iterator[Method]:
    """Yield each method that is named; a baseline is trained when its turn comes, variants are there."""
    knowledge = _read_once(gag, domain)
    for name in names:
        if name == "other" and len(gag.domains.names) == 1:
            say(f"compare {domain}: no other domain is present, so its module cannot be a control")
        elif name in BASE_AND_GAG | SALIENT | CONTROLS | EXPERT:
            yield _of_domain(project, gag, domain, name, knowledge)
        elif found := retrieval_named(name):
            kind, count = found
            top = (count,) if count else QUICK_TOP if quick else TOP
            yield from _retrieval(project, gag, domain, kind, top)
        elif name == "lora":
            yield _lora(project, domain, tune_base(project, domain, gag.base, quick))
        elif name == "prefix":
            yield _prefix(project, gag, domain, train_prefix(project, domain, gag.base, quick))
        else:
            yield _variant(project, gag, domain, name)


def retrieval_named(name: str) -> tuple[str, int | None] | None:
    """Read the name of a kind of retrieval, such as bm25, or of one number of its passages: bm25-3."""
    kind, dash, count = name.partition("-")
    if kind not in RETRIEVAL or (dash and not (count.isdecimal() and int(count))):
        return None
    return kind, int(count) if count else None


def _can_retrieve(project: Project, kind: str) -> bool:
    return kind != "colbert" or project.settings.evaluation.colbert is not None


def passages_of(project: Project, domain: str) -> list[Passage]:
    """Return what retrieval may search: the domain's corpus, or else the answers that teach the expert."""
    inputs = project.inputs(domain)
    if inputs.passages:
        return inputs.passages
    different = dict.fromkeys(example.answers[0] for example in inputs.taught)
    return [Passage(str(i), text) for i, text in enumerate(different)]


def _read_once(gag: LocalGAG, domain: str) -> KnowledgeOf:
    """Read the expert once for all methods; a question alone is being timed, and read each time."""
    read: dict[tuple[str, ...], list[Knowledge]] = {}

    def knowledge(questions: list[str]) -> list[Knowledge]:
        if len(questions) == 1:
            return knowledge_of(gag, questions, domain)
        if tuple(questions) not in read:
            read[tuple(questions)] = knowledge_of(gag, questions, domain)
        return read[tuple(questions)]

    return knowledge


def _of_domain(project: Project, gag: LocalGAG, domain: str, name: str, knowledge: KnowledgeOf) -> Method:
    """Return the base, GAG, a control or the expert: what needs nothing but the domain as it was built."""
    others = [other for other in gag.domains.names if other != domain]
    answers: dict[str, Answering] = {
        "base": lambda q, new: alone(gag, q, new),
        "gag": lambda q, new: injected(gag, domain, q, knowledge(q), new),
        "shuffled": lambda q, new: injected(gag, domain, q, _shuffled(knowledge(q)), new),
        "zero": lambda q, new: injected(gag, domain, q, zeroed(knowledge(q)), new),
        "other": lambda q, new: injected(gag, domain, q, knowledge_of(gag, q, others[0]), new),
        "expert": lambda q, new: MethodResult([k.text for k in knowledge(q)], 0.0),
        "text": lambda q, new: with_text(gag, domain, q, [k.text for k in knowledge(q)], new),
        "words": lambda q, new: with_text(gag, domain, q, [" ".join(k.words) for k in knowledge(q)], new),
        "untrained": lambda q, new: injected(gag, domain, q, _untrained(gag, domain, q), new),
    }
    built = build_cost(project, domain, folder_bytes(project.domain(domain)))
    return Method(
        name=name,
        label=(METHODS | SALIENT)[name],
        answer=answers[name],
        cost=NOTHING if name == "base" else built,
        made_from=(gag.domains.facts(others[0]).key,) if name == "other" else (),
        routed=name == "gag",
        context=(lambda questions: [k.text for k in knowledge(questions)]) if name == "text" else None,
    )


def _untrained(gag: LocalGAG, domain: str, questions: list[str]) -> list[Knowledge]:
    """Read a domain's expert with a projector as alignment found it: the identity."""
    own, base = gag.domains.module(domain), gag.base
    shape = own.readout.shape(base.width, base.width)
    start = Residual(base.width, shape[0])
    start.start_from_identity(torch.zeros(1, *shape), mean_embedding(base))
    return knowledge_of(gag, questions, domain, replace(own, projector=start.to(base.device)))


def _shuffled(knowledge: list[Knowledge]) -> list[Knowledge]:
    """Give every question another one's knowledge: all stand in one ring, so that nobody keeps its own."""
    order = random.Random(SEED).sample(range(len(knowledge)), len(knowledge))
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [knowledge[after[i]] for i in range(len(knowledge))]


def _variant(project: Project, gag: LocalGAG, domain: str, name: str) -> Method:
    """Load another readout and projector of the same expert."""
    variant = project.under(name)
    folder, settings = variant.run(domain, "align"), variant.settings
    widths = gag.experts.facts.width, gag.base.width
    projector = load_projector(folder, settings.align.projector, settings.readout, *widths)
    module = replace(
        gag.domains.module(domain),
        readout=settings.readout,
        common=variant.inputs(domain).common,
        projector=projector.to(gag.base.device),
    )
    disk = folder_bytes(project.domain(domain) / "expert") + (folder / PROJECTOR).stat().st_size

    def answer(questions: list[str], new: int | None) -> MethodResult:
        return injected(gag, domain, questions, knowledge_of(gag, questions, domain, module), new)

    return Method(
        name=name,
        label=f"GAG, {name}",
        answer=answer,
        cost=build_cost(variant, domain, disk),
        made_from=(read_manifest(folder)["key"],),
        routed=True,
    )


def _retrieval(
    project: Project, gag: LocalGAG, domain: str, name: str, top: tuple[int, ...]
) -> Iterator[Method]:
    """Yield a kind of retrieval at several numbers of passages."""
    passages = passages_of(project, domain)
    started = time.monotonic()
    retriever, disk, made_by = _retriever(project, gag, name, passages)
    cost = Cost(round(time.monotonic() - started, 2), None, disk)
    for count in top:
        if count > len(passages):
            return
        context = _context(retriever, passages, count)
        yield Method(
            name=f"{name}-{count}",
            label=f"{METHODS[name]} top {count}",
            answer=lambda q, new, context=context: with_text(gag, domain, q, context(q), new),
            cost=cost,
            made_from=(made_by, *(passage.text for passage in passages)),
            context=context,
        )


def _context(retriever: Retriever, passages: list[Passage], count: int) -> Callable[[list[str]], list[str]]:
    """Return the text that so many passages make for each question."""
    return lambda questions: [" ".join(passages[i].text for i in row) for row in retriever(questions, count)]


def _retriever(
    project: Project, gag: LocalGAG, name: str, passages: list[Passage]
) -> tuple[Retriever, int, str]:
    """Build an index -> (its search, its bytes with the texts, the name of its encoder's weights)."""
    text = sum(len(p.text.encode()) for p in passages)
    if name in ("bm25", "rewritten"):
        return (bm25(passages) if name == "bm25" else rewritten(passages)), text, ""
    if name == "dense":
        encoder = similarity_encoder(gag, project.settings.router.max_tokens)
        size = text + 4 * len(passages) * encoder.spec.width
        return dense(passages, encoder), size, encoder.spec.fingerprint
    if name == "colbert":
        encoder = ColBERT(str(project.settings.evaluation.colbert), project.root)
        made_by = encoder.fingerprint
    else:
        encoder = PlainStates(BackboneStates(gag.experts.backbone))
        made_by = gag.experts.facts.fingerprint
    search, index = late_interaction(passages, encoder)
    return search, text + index, made_by


def _lora(project: Project, domain: str, built: Baseline) -> Method:
    """Answer with a tuned copy of the base."""
    model = tuned_base(project, built)

    def answer(questions: list[str], new: int | None) -> MethodResult:
        rows = [model.embed(model.prompts.plain(question)) for question in questions]
        return MethodResult(decoded(model, rows, new or answer_budget(project)), 0.0)

    return _baseline("lora", answer, built)


def _prefix(project: Project, gag: LocalGAG, domain: str, built: Baseline) -> Method:
    """Answer with a trained prefix in the place of the vectors."""
    words = project.described(domain).prompts

    def answer(questions: list[str], new: int | None) -> MethodResult:
        rows = prefix_rows(gag.base, built, questions, words)
        bare = [len(gag.base.prompts.with_text(question, words, "")) for question in questions]
        return answered(gag, rows, [len(row) - b for row, b in zip(rows, bare, strict=True)], new)

    return _baseline("prefix", answer, built)


def _baseline(name: str, answer: Answering, built: Baseline) -> Method:
    cost = Cost(built.seconds, built.peak_bytes, folder_bytes(built.folder, "*.safetensors"))
    key = read_manifest(built.folder)["key"]
    return Method(name=name, label=METHODS[name], answer=answer, cost=cost, made_from=(key,))

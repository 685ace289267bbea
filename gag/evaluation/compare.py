"""The same questions by every method, with controls: what each gets right, what it costs, and where it wins."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gag.artifacts import write_json
from gag.config import Project
from gag.data import adapt_file, alignment_rows
from gag.engine import GAG, Knowledge
from gag.errors import DataError, SettingsError
from gag.evaluation.arms import Arm, answered, decoded, injected, know, nulled, plain, seconds_of, with_text
from gag.evaluation.asked import Asked, read_asked, read_test_rows
from gag.evaluation.bertscore import BackboneStates
from gag.evaluation.evaluate import scorers
from gag.evaluation.intervals import interval, paired
from gag.evaluation.metrics import tokens
from gag.evaluation.retrieval import TOP, Retriever, bm25, dense, late_interaction, rewritten
from gag.evaluation.tuned import budget, prefix_rows, train_prefix, tune_base, tuned_base
from gag.progress import say
from gag.records import Passage, read_examples, read_passages, write_rows
from gag.settings import GENERAL

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
QUESTIONS, QUICK_QUESTIONS, SEEN, GENERAL_QUESTIONS = 800, 240, 100, 100
SEED = 7


@dataclass(frozen=True)
class Way:
    """One method at work: answers to questions, with as many new tokens as it may write, or so many."""

    name: str
    label: str
    answer: Callable[[list[str], int | None], Arm]
    build_seconds: float | None = None
    disk: int | None = None  # bytes that the domain needs beside the base


def compare(project: Project, domain: str, methods: list[str], quick: bool) -> dict[str, Any]:
    """Answer a domain's test questions by each method; write answers and figures to runs/<domain>/compare."""
    started = time.monotonic()
    if unknown := [name for name in methods if name not in METHODS]:
        raise SettingsError(f"no method {unknown[0]!r}; --methods takes {', '.join(METHODS)}")
    rows, count = _questions(project, domain, quick)
    slices = _slices(rows, _passages(project, domain))
    general = _general(project)
    gag = GAG(project)
    metric = project.settings.evaluation.of(domain, domain)[0]
    judges = scorers(gag)
    score, judge = judges[metric], judges["contains"]
    folder = project.run(domain, "compare")
    questions, golds = [row.question for row in rows], [row.answers for row in rows]
    found: dict[str, dict[str, Any]] = {}
    values: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    for way in _ways(project, gag, domain, methods, quick):
        arm = way.answer(questions, None)
        values[way.name], texts[way.name] = score(arm.texts, golds), arm.texts
        test = values[way.name][:count]
        first, each = _speed(way, questions)
        kept = None if general is None or way.name in ("shuffled", "zero", "other", "expert") else float(np.mean(
            judge(_on_general(gag, way, [r.question for r in general]), [r.answers for r in general])))  # fmt: skip
        found[way.name] = {
            "label": way.label, "quality": round(float(np.mean(test)), 4), "interval": interval(test),
            "tokens_added": round(arm.tokens_added, 2), "general": None if kept is None else round(kept, 4),
            "build_seconds": way.build_seconds, "disk_mb": None if way.disk is None else round(way.disk / 1e6, 2),
            "first_token_ms": first, "per_token_ms": each,
        }  # fmt: skip
        say(f"compare {domain}: {way.label} {found[way.name]['quality']:.3f}")
    for name, figures in found.items():
        if "gag" in values and name != "gag":
            difference, ends = paired(values["gag"][:count], values[name][:count])
            figures["gag_leads_by"] = {"mean": round(difference, 4), "interval": ends}
    result = {
        "domain": domain, "metric": metric, "questions": count, "quick": quick, "methods": found,
        "slices": {
            name: {"questions": len(chosen)}
            | {way: round(float(np.mean([each[i] for i in chosen])), 4) for way, each in values.items()}
            for name, chosen in slices.items()
        },
        "worst": _worst(rows[:count], values, texts), "memory": _memory(project, gag, domain, found),
        "facts": _facts(project, gag, domain), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "answers.jsonl", (
        {"id": row.id, "question": row.question, "gold": list(row.answers)} | {way: t[i] for way, t in texts.items()}
        for i, row in enumerate(rows)
    ))  # fmt: skip
    write_json(folder / "compare.json", result)
    return result


def _questions(project: Project, domain: str, quick: bool) -> tuple[list[Asked], int]:
    """Take the test rows, or a fixed draw of them, and behind them some that alignment saw -> all, and how many are test."""
    rng = random.Random(SEED)
    rows = [row for row in read_test_rows(project, [domain]) if row.answers]
    if not rows:
        raise DataError(f"no test row of {domain} has a gold answer; add answers")
    most = QUICK_QUESTIONS if quick else QUESTIONS
    rows = rng.sample(rows, most) if len(rows) > most else rows
    seen = alignment_rows(project, domain)["align"]
    shown = [
        Asked(f"seen/{e.id}", e.question, e.answers, domain, domain, {"group": e.group, "slices": ["facts that alignment saw"]})
        for e in rng.sample(seen, min(SEEN, len(seen)))
    ]
    return rows + shown, len(rows)


def _general(project: Project) -> list[Asked] | None:
    """Take some general questions with answers, if the project names any."""
    if project.settings.general.test is None:
        return None
    rows = [
        row for row in read_asked(project.file(project.settings.general.test), project.settings.labels, GENERAL) if row.answers
    ]
    return random.Random(SEED).sample(rows, min(GENERAL_QUESTIONS, len(rows))) or None


def _passages(project: Project, domain: str) -> list[Passage]:
    """Return what retrieval may search: the domain's corpus, or else the different answers that teach the expert."""
    corpus = project.described(domain).corpus
    if corpus:
        return read_passages(project.file(corpus))
    different = dict.fromkeys(e.answers[0] for e in read_examples(adapt_file(project, domain)))
    return [Passage(str(i), text) for i, text in enumerate(different)]


def _ways(project: Project, gag: GAG, domain: str, methods: list[str], quick: bool) -> "Any":
    """Yield each asked method, built when its turn comes."""
    module = _module(project, domain)
    built = _build_seconds(project, domain)
    others = [name for name in gag.domains if name != domain]
    read: dict[tuple[str, ...], list[Knowledge]] = {}

    def known(questions: list[str]) -> list[Knowledge]:
        """Read the expert once for all ways; a question alone is being timed, and read each time."""
        if len(questions) == 1:
            return know(gag, questions, domain)
        if tuple(questions) not in read:
            read[tuple(questions)] = know(gag, questions, domain)
        return read[tuple(questions)]

    def shuffled(questions: list[str], new: int | None) -> Arm:
        mine = known(questions)
        order = random.Random(SEED).sample(range(len(mine)), len(mine))
        after = dict(zip(order, [*order[1:], order[0]], strict=True))  # one ring, so that nobody keeps its own
        return injected(gag, domain, questions, [mine[after[i]] for i in range(len(mine))], new)

    def other(questions: list[str], new: int | None) -> Arm:
        return injected(gag, domain, questions, know(gag, questions, others[0]), new)

    simple: dict[str, Callable[[list[str], int | None], Arm]] = {
        "base": lambda q, new: plain(gag, q, new),
        "gag": lambda q, new: injected(gag, domain, q, known(q), new),
        "shuffled": shuffled,
        "zero": lambda q, new: injected(gag, domain, q, nulled(known(q)), new),
        "other": other,
        "expert": lambda q, new: Arm([k.text for k in known(q)], 0.0),
        "text": lambda q, new: with_text(gag, domain, q, [k.text for k in known(q)], new),
    }
    for name in methods:
        if name in simple:
            if name == "other" and not others:
                say(f"compare {domain}: no other domain is present, so its module cannot be a control")
                continue
            cost = {"base": (0.0, 0)}.get(name, (built, module))
            yield Way(name, METHODS[name], simple[name], *cost)
        elif name in RETRIEVAL:
            yield from _retrieval_ways(project, gag, domain, name)
        elif name == "lora":
            cost = tune_base(project, domain, gag.base, quick)
            model = tuned_base(project, cost)
            yield Way(name, METHODS[name], lambda q, new, m=model: Arm(decoded(
                m, [m.embed(m.prompts.plain(one)) for one in q], new or budget(project)), 0.0),
                cost.seconds, _bytes(cost.folder))  # fmt: skip
        elif name == "prefix":
            cost, instruction = train_prefix(project, domain, gag.base, quick), project.described(domain).prompts.answer

            def prefixed(questions: list[str], new: int | None, cost: Any = cost, instruction: str = instruction) -> Arm:
                rows = prefix_rows(gag.base, cost, questions, instruction)
                bare = [len(gag.base.prompts.with_text(q, instruction, "")) for q in questions]
                return answered(gag, rows, [len(row) - b for row, b in zip(rows, bare, strict=True)], new)

            yield Way(name, METHODS[name], prefixed, cost.seconds, _bytes(cost.folder))


def _retrieval_ways(project: Project, gag: GAG, domain: str, name: str) -> "Any":
    """Yield a kind of retrieval at every number of passages."""
    passages = _passages(project, domain)
    started = time.monotonic()
    retriever, disk = _retriever(project, gag, name, passages)
    seconds = round(time.monotonic() - started, 2)
    for count in TOP:
        if count > len(passages):
            return

        def answer(questions: list[str], new: int | None, count: int = count) -> Arm:
            ranked = retriever(questions, count)
            texts = [" ".join(passages[i].text for i in row) for row in ranked]
            return with_text(gag, domain, questions, texts, new)

        yield Way(f"{name}-{count}", f"{METHODS[name]} top {count}", answer, seconds, disk)


def _retriever(project: Project, gag: GAG, name: str, passages: list[Passage]) -> tuple[Retriever, int]:
    """Build an index; without a pretrained encoder (evaluation.similarity: expert) the expert backbone's states serve."""
    text = sum(len(p.text.encode()) for p in passages)
    if name in ("bm25", "rewritten"):
        return (bm25(passages) if name == "bm25" else rewritten(passages)), text
    if project.settings.evaluation.similarity == "expert":
        encoder = gag.sentence_encoder()
    else:
        from gag.encoders import SentenceEncoder
        from gag.settings import EncoderSettings

        chosen = EncoderSettings(kind="sentence-transformers", model=project.settings.evaluation.similarity)
        encoder = SentenceEncoder(project.settings.router.model_copy(update={"encoder": chosen}), project.root)
    if name == "dense":
        return dense(passages, encoder), text + 4 * len(passages) * encoder.spec.width
    states = BackboneStates(gag.experts.backbone)
    words = sum(len(gag.experts.backbone.prompts.text(p.text)) for p in passages)
    return late_interaction(passages, states), text + 4 * words * gag.experts.backbone.width


def _on_general(gag: GAG, way: Way, questions: list[str]) -> list[str]:
    """Answer general questions as a user of the method would meet it: GAG has its router, the others are always on."""
    if way.name == "gag":
        return [answer.text for answer in gag.ask(questions)]
    return way.answer(questions, None).texts


def _speed(way: Way, questions: list[str]) -> tuple[float, float]:
    """Measure one question alone: milliseconds to the first token, and for each further one."""
    one, further = questions[:1], 5
    first = seconds_of(lambda: way.answer(one, 1), 3)
    more = seconds_of(lambda: way.answer(one, 1 + further), 3)
    return round(1000 * first, 2), round(1000 * max(0.0, more - first) / further, 2)


def _build_seconds(project: Project, domain: str) -> float | None:
    """Sum what the stages' manifests say they took."""
    taken = []
    for stage in ("adapt", "readouts/align", "align"):
        path = project.run(domain, stage) / "manifest.json"
        taken.append(json.loads(path.read_text(encoding="utf-8")).get("seconds") if path.is_file() else None)
    return None if None in taken else round(sum(taken), 1)


def _slices(rows: list[Asked], passages: list[Passage]) -> dict[str, list[int]]:
    """Group the questions: by what their rows say, by numeric answers, and by words shared with their statement."""
    statements = {passage.id: set(tokens(passage.text)) for passage in passages}
    common = {word for word, many in _counts(statements).items() if many > len(statements) / 20}
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        named = row.row.get("slices") or []
        if not isinstance(named, list):
            raise DataError(f'row {row.id}: "slices" must be a list of texts')
        names = [str(name) for name in named]
        if any(answer.strip().replace(".", "", 1).isdigit() for answer in row.answers):
            names.append("numeric answers")
        statement = statements.get(str(row.row.get("group")))
        if statement is not None and not (set(tokens(row.question)) - common) & statement:
            names.append("no content word shared with the statement")
        for name in dict.fromkeys(names):
            groups.setdefault(name, []).append(i)
    return groups


def _counts(statements: dict[str, set[str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for words in statements.values():
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    return counts


def _worst(
    rows: list[Asked], values: dict[str, list[float]], texts: dict[str, list[str]], count: int = 8
) -> list[dict[str, str]]:
    """Take GAG's worst answers, with what other methods say."""
    if "gag" not in values:
        return []
    order = sorted(range(len(rows)), key=lambda i: (values["gag"][i], i))[:count]
    shown = [name for name in ("gag", "text", "expert", "bm25-1") if name in texts]
    return [
        {"question": rows[i].question, "gold": rows[i].answers[0]} | {name: texts[name][i] for name in shown} for i in order
    ]


def _memory(project: Project, gag: GAG, domain: str, found: dict[str, Any]) -> dict[str, Any]:
    """Say what is resident with 1 to 64 domains, in MB: one base and one expert with modules, or the alternatives."""
    base, expert = (
        sum(p.nbytes for name, p in m.model.named_parameters() if "lora" not in name) / 1e6
        for m in (gag.base, gag.experts.backbone)
    )
    module = _module(project, domain) / 1e6
    lora = found.get("lora", {}).get("disk_mb")
    index = next((found[name]["disk_mb"] for name in found if name.startswith("dense")), None)
    counts = [1, 2, 4, 8, 16, 32, 64]
    lines = {"GAG: base, one expert, a module each": [base + expert + n * module for n in counts],
             "published code: a base and an expert each": [n * (base + expert) for n in counts]}  # fmt: skip
    if lora is not None:
        lines["base and a LoRA adapter each"] = [base + n * lora for n in counts]
    if index is not None:
        lines["base, encoder and a dense index each"] = [base + expert + n * index for n in counts]
    return {"domains": counts, "mb": {name: [round(v, 1) for v in line] for name, line in lines.items()}}


def _facts(project: Project, gag: GAG, domain: str) -> dict[str, Any]:
    facts = gag.domains[domain].facts
    chosen = project.settings.evaluation
    return {
        "base": facts.base.model_dump(), "expert": facts.expert.model_dump(), "readout": facts.readout.model_dump(mode="json"),
        "projector": facts.projector, "data": facts.data, "created": facts.created,
        "decoding": project.settings.decoding.model_dump(), "passages": len(_passages(project, domain)),
        "dense encoder": chosen.similarity, "late interaction": "the expert backbone's last states",
    }  # fmt: skip


def _module(project: Project, domain: str) -> int:
    return sum(path.stat().st_size for path in project.domain(domain).rglob("*") if path.is_file())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix == ".safetensors")

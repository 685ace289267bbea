"""The same questions by every method, with controls: what each gets right, what it costs, and where it wins."""

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from gag.engine.engine import GAG
from gag.errors import DataError
from gag.evaluation.answers import times_of
from gag.evaluation.evaluate import scorers
from gag.evaluation.intervals import interval, paired
from gag.evaluation.labelled import Asked, read_asked, read_test_rows
from gag.evaluation.methods import RETRIEVAL, SEED, Way, bytes_of, passages_of, ways
from gag.evaluation.metrics import tokens
from gag.project.artifacts import write_json
from gag.project.inputs import alignment_rows
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import Passage, write_rows
from gag.project.keys import stage_key
from gag.project.settings import GENERAL

QUESTIONS, QUICK_QUESTIONS, SEEN, GENERAL_QUESTIONS = 500, 240, 100, 100
CONTROLS = ("shuffled", "zero", "other")
FURTHER = 5  # tokens after the first, that are timed


def compare(
    project: Project, domain: str, methods: list[str], quick: bool, peaks: dict[str, float]
) -> dict[str, Any]:
    """Answer a domain's test questions by each method; write answers and figures to runs/<domain>/compare.

    Each method's answers are kept as soon as they stand, so a comparison that was cut goes on with the next method.
    """
    started = time.monotonic()
    rows, count = _questions(project, domain, quick)
    slices = _slices(rows, passages_of(project, domain))
    general = _general(project)
    gag = GAG(project)
    metric = project.settings.evaluation.of(domain, domain)[0]
    judges = scorers(gag)
    score, judge = judges[metric], judges["contains"]
    folder = project.run(domain, "compare")
    golds = [row.answers for row in rows]
    found: dict[str, dict[str, Any]] = {}
    values: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    contexts: dict[str, list[float]] = {}  # whether the gold stands in what a method puts into the prompt
    for way in ways(project, gag, domain, methods, quick, peaks):
        did = _worked(folder / "ways" / f"{way.name}.json", gag, domain, way, rows, general)
        values[way.name], texts[way.name] = score(did["texts"], golds), did["texts"]
        test = values[way.name][:count]
        kept = (
            float(np.mean(judge(did["general"], [r.answers for r in general])))
            if general and did["general"]
            else None
        )
        disk = way.cost.disk
        held = None if way.context is None else judge(way.context([row.question for row in rows]), golds)
        if held is not None:
            contexts[way.name] = held
        found[way.name] = {
            "label": way.label, "quality": round(float(np.mean(test)), 4), "interval": interval(test),
            "in_context": None if held is None else round(float(np.mean(held[:count])), 4),
            "tokens_added": round(did["tokens_added"], 2), "general": None if kept is None else round(kept, 4),
            "build_seconds": way.cost.seconds, "build_mb": way.cost.peak_mb,
            "disk_mb": None if disk is None else round(disk / 1e6, 2),
            "first_token_ms": did["first_token_ms"], "per_token_ms": did["per_token_ms"],
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
        "contexts": {
            name: {way: round(float(np.mean([held[i] for i in chosen])), 4) for way, held in contexts.items()}
            for name, chosen in slices.items()
        },
        "worst": _worst(rows[:count], values, texts), "memory": _memory(project, gag, domain, found),
        "facts": _facts(project, gag, domain), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_rows(folder / "answers.jsonl", (
        {"id": row.id, "question": row.question, "gold": list(row.answers)} | {way: t[i] for way, t in texts.items()}
        for i, row in enumerate(rows)
    ))  # fmt: skip
    write_json(folder / "compare.json", result)
    return result


def _worked(
    path: Path, gag: GAG, domain: str, way: Way, rows: list[Asked], general: list[Asked] | None
) -> dict[str, Any]:
    """Let a method answer everything and time it, or take what it did before on the same questions and models."""
    questions, asked = [row.question for row in rows], [row.question for row in general or []]
    key = stage_key(way=way.name, made_from=way.made_from, domain=gag.domains[domain].facts.key, questions=questions,
                    general=asked, decoding=gag.project.settings.decoding.model_dump())  # fmt: skip
    kept = _kept(path)
    if kept.get("key") == key:
        return kept
    arm = way.answer(questions, None)
    first, each = _speed(gag, way, questions)
    done = {
        "key": key, "texts": arm.texts, "tokens_added": arm.tokens_added, "first_token_ms": first, "per_token_ms": each,
        "general": _on_general(gag, way, asked) if asked and way.name not in (*CONTROLS, "expert") else [],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    write_json(fresh, done)
    fresh.rename(path)
    return done


def _kept(path: Path) -> dict[str, Any]:
    """Read what a method did before; a file that was cut or edited counts for nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
        Asked(
            f"seen/{e.id}",
            e.question,
            e.answers,
            domain,
            domain,
            {"group": e.group, "slices": ["facts that alignment saw"]},
        )
        for e in rng.sample(seen, min(SEEN, len(seen)))
    ]
    return rows + shown, len(rows)


def _general(project: Project) -> list[Asked] | None:
    """Take some general questions with answers, if the project names any."""
    if project.settings.general.test is None:
        return None
    rows = [
        row
        for row in read_asked(project.file(project.settings.general.test), project.settings.labels, GENERAL)
        if row.answers
    ]
    return random.Random(SEED).sample(rows, min(GENERAL_QUESTIONS, len(rows))) or None


def _on_general(gag: GAG, way: Way, questions: list[str]) -> list[str]:
    """Answer general questions as a user of the method would meet it: GAG has its router, the others are always on."""
    if way.routed:
        return [answer.text for answer in gag.ask(questions)]
    return way.answer(questions, None).texts


def _speed(gag: GAG, way: Way, questions: list[str]) -> tuple[float, float | None]:
    """Measure one question alone: milliseconds to the first token, and for each further one that is written.

    What writes its whole text before the first token, as the expert alone does here, has no time for further ones.
    """
    one = questions[:1]
    first, more = times_of(lambda: way.answer(one, 1)), times_of(lambda: way.answer(one, 1 + FURTHER))
    text = way.answer(one, 1 + FURTHER).texts[0]
    written = min(FURTHER, len(gag.base.prompts.text(text)))  # its end, too, is a token
    known = way.name != "expert" and written > 0
    each = (
        max(0.0, more[0] - first[0]) / written if known else None
    )  # of the fastest: noise would drown the difference
    return round(1000 * first[len(first) // 2], 2), None if each is None else round(1000 * each, 2)


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
    retrieval = max(
        (name for name in values if name.split("-")[0] in RETRIEVAL),
        key=lambda name: sum(values[name]),
        default=None,
    )
    shown = [name for name in ("gag", "text", "expert", retrieval) if name in texts]
    return [
        {"question": rows[i].question, "gold": rows[i].answers[0]} | {name: texts[name][i] for name in shown}
        for i in order
    ]


def _memory(project: Project, gag: GAG, domain: str, found: dict[str, Any]) -> dict[str, Any]:
    """Say what is resident with 1 to 64 domains, in MB: one base and one expert with modules, or the alternatives."""
    base, expert = (
        sum(p.nbytes for name, p in m.model.named_parameters() if "lora" not in name) / 1e6
        for m in (gag.base, gag.experts.backbone)
    )
    module = bytes_of(project.domain(domain)) / 1e6
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
        "decoding": project.settings.decoding.model_dump(), "passages": len(passages_of(project, domain)),
        "dense encoder": chosen.similarity, "late interaction": "the expert backbone's last states",
    }  # fmt: skip

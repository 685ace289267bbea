"""The demo: two private domains for the bundled frozen base, built, evaluated and shown on a laptop's CPU."""

import resource
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gag.errors import SettingsError
from gag.pocket.world import ENTITIES
from gag.pocket.write import PRESET, write_project
from gag.project.progress import say
from gag.project.parsing import PROJECT_FILE
from gag.project.project import Project, load_project
from gag.project.rows import Example, Passage, digest, read_examples, read_passages, read_rows
from gag.project.settings import GENERAL

SAMPLES = 3


@dataclass(frozen=True)
class TestRow:
    """A test question of a domain and what is known of it."""

    example: Example
    unseen_wording: bool
    new_value: bool


def demo(folder: Path, seed: int, preset: str = PRESET, entities: int = ENTITIES) -> dict[str, Any]:
    """Make the project of a seed, build its domains, evaluate everything, and return the figures."""
    started = time.monotonic()
    project = make_project(folder, seed, entities, preset)
    base_files = _base_files(project)
    from gag.evaluation.general import evaluate_general
    from gag.stages.build import build

    domains = list(project.settings.domains)
    seconds = build(project, domains)
    from gag.engine.engine import GAG

    clock = time.monotonic()
    gag = GAG(project)
    results, added = {}, {}
    for domain in domains:
        say(f"evaluate {domain}")
        results[domain], added[domain] = _evaluate_domain(gag, project, domain)
    say("evaluate general")
    general = evaluate_general(gag, _general_rows(project), project.settings.base)
    general["identical"] = general["identical"] and _base_files(project) == base_files
    routing = _evaluate_routing(gag, project, domains)
    seconds["evaluate"] = round(time.monotonic() - clock, 2)
    return {
        "seed": seed,
        "preset": preset,
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": round(_peak_rss() / 2**20),
        "domains": results,
        "general": general,
        "routing": routing,
        "tokens_added": {
            arm: round(sum(a[arm] for a in added.values()) / len(added), 2) for arm in added[domains[0]]
        },
        "stages": seconds,
        "samples": _samples(gag, project, domains),
    }


def make_project(
    folder: Path, seed: int, entities: int = ENTITIES, preset: str = PRESET, hard: bool = False
) -> Project:
    """Write the world's project, or the same one again over an earlier demo; anything else is left alone."""
    marker = "# The bundled world of `gag demo`, seed "
    path = folder / PROJECT_FILE
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(marker):
        raise SettingsError(f"{folder} holds a project that is not a demo; choose another --dir")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; choose another --dir")
    if folder.is_dir() and not path.is_file() and any(p.name != "runs" for p in folder.iterdir()):
        raise SettingsError(f"{folder} is not empty and holds no demo; choose another --dir")
    from gag.project.artifacts import locked

    with locked(folder / "runs"):
        header = f"{marker}{seed}, preset {preset}{', with hard questions' if hard else ''}\n"
        if path.is_file() and not path.read_text(encoding="utf-8").startswith(
            header
        ):  # another world: start anew
            for unfinished in (folder / "runs").glob("**/*.unfinished"):
                shutil.rmtree(unfinished)
        write_project(folder, seed, entities, header, preset, hard)
    return load_project(folder)


def _base_files(project: Project) -> dict[str, str]:
    """Hash every file of the base."""
    folder = project.root / project.settings.base.model
    return {path.name: digest(path) for path in sorted(folder.iterdir())}


def _evaluate_domain(gag: Any, project: Project, domain: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Score every arm on the domain's test questions; return the scores and the tokens that each arm added."""
    from gag.evaluation.answers import answer_all
    from gag.evaluation.metrics import contains

    rows = _test_rows(project, domain)
    corpus = read_passages(project.file(str(project.described(domain).corpus)))
    arms = answer_all(gag, domain, _cases(rows, corpus), corpus)
    hits = {
        name: [contains(t, r.example.answers) for t, r in zip(arm.texts, rows, strict=True)]
        for name, arm in arms.items()
    }

    def share(arm: str, keep: list[bool]) -> float:
        return round(sum(h for h, k in zip(hits[arm], keep, strict=True) if k) / sum(keep), 4)

    new = [row.new_value for row in rows]
    groups = {
        "seen_wordings": [not row.unseen_wording and not row.new_value for row in rows],
        "unseen_wordings": [row.unseen_wording and not row.new_value for row in rows],
        "new_values": new,
    }
    scores = {group: {arm: share(arm, keep) for arm in arms} for group, keep in groups.items()}
    scores |= {
        "gag_new_values": scores["new_values"]["gag"],
        "questions": len(rows),
        "facts": len({row.example.group for row in rows}),
    }
    return scores, {name: arm.tokens_added for name, arm in arms.items()}


def _cases(rows: list[TestRow], corpus: list[Passage]) -> list[Any]:
    """Pair each question with one whose vector is wrong for it, and with the gold statement among three near misses."""
    import random

    from gag.evaluation.answers import Case

    rng = random.Random(0)
    statements = {passage.id: passage.text for passage in corpus}
    cases = []
    for row in rows:
        entity, relation = row.example.group.split("/")
        same = [
            r.example
            for r in rows
            if r.example.group.endswith(f"/{relation}") and r.example.answers != row.example.answers
        ]
        near = [id for id in statements if id.startswith(f"{entity}/") and id != row.example.group]
        other = [id for id in statements if id.endswith(f"/{relation}") and id != row.example.group]
        chosen = [row.example.group, *rng.sample(near, 1), *rng.sample(other, 2)]
        rng.shuffle(chosen)
        cases.append(Case(row.example, rng.choice(same), " ".join(statements[id] for id in chosen)))
    return cases


def _evaluate_routing(gag: Any, project: Project, domains: list[str]) -> dict[str, Any]:
    """Route every test question of every domain and of general."""
    asked = [(q.question, GENERAL) for q in _general_rows(project)]
    asked += [(row.example.question, domain) for domain in domains for row in _test_rows(project, domain)]
    routes = gag.route([question for question, _ in asked])
    pairs = Counter((truth, route.domain) for (_, truth), route in zip(asked, routes, strict=True))
    names = [GENERAL, *domains]
    return {
        "accuracy": round(sum(pairs[n, n] for n in names) / len(asked), 4),
        "questions": len(asked),
        "confusion": {truth: {guess: pairs[truth, guess] for guess in names} for truth in names},
    }


def _samples(gag: Any, project: Project, domains: list[str]) -> list[dict[str, str]]:
    """Ask one question of each domain and a general one."""
    rows = [
        next(r.example for r in _test_rows(project, d) if r.unseen_wording and not r.new_value)
        for d in domains
    ]
    questions = [*rows[: SAMPLES - 1], _general_rows(project)[0]]
    answers = gag.ask([row.question for row in questions])
    return [
        {"question": row.question, "route": a.route.domain, "answer": a.text, "gold": row.answers[0]}
        for row, a in zip(questions, answers, strict=True)
    ]


def _test_rows(project: Project, domain: str) -> list[TestRow]:
    path = project.file(str(project.described(domain).test))
    flags = [row for _, row in read_rows(path)]
    examples = read_examples(path)
    return [
        TestRow(e, f["wording"] == "unseen", f["new_value"]) for e, f in zip(examples, flags, strict=True)
    ]


def _general_rows(project: Project) -> list[Example]:
    return read_examples(project.file("data/general/test.jsonl"))


def _peak_rss() -> int:
    """Peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""The demo: two private domains for the bundled frozen base, built, evaluated and shown on a laptop's CPU."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gag.errors import SettingsError
from gag.pocket.world import ENTITIES
from gag.pocket.write import PRESET, write_project
from gag.pocket.write_trade import write_trade
from gag.project.domain import TransferFacts
from gag.project.memory import peak_bytes
from gag.project.parsing import PROJECT_FILE
from gag.project.progress import say
from gag.project.project import Project, load_project
from gag.project.rows import Example, Passage, digest, read_examples, read_passages, read_rows
from gag.project.settings import GENERAL

if TYPE_CHECKING:
    from gag.engine.engine import LocalGAG
    from gag.evaluation.answers import Case
    from gag.evaluation.general import GeneralFigures

SAMPLES = 3
GENERAL_ASKED = 8  # of which one that the base knows is shown
MARKER = "# The bundled world of `gag demo`, seed "
Shares = dict[str, float]  # of answers that contain the gold, by method


@dataclass(frozen=True)
class DomainScores:
    """A domain's shares of right answers, by what alignment has seen of the questions."""

    seen_wordings: Shares
    unseen_wordings: Shares
    new_values: Shares  # facts whose value was never an answer in alignment
    gag_new_values: float
    questions: int
    facts: int


@dataclass(frozen=True)
class RoutingScores:
    """Where the test questions of every domain and of general go."""

    accuracy: float
    questions: int
    confusion: dict[str, dict[str, int]]  # by true domain, then by route


@dataclass(frozen=True)
class Sample:
    """A question that was asked, and what came of it."""

    question: str
    route: str
    answer: str
    gold: str


@dataclass(frozen=True)
class DemoFigures:
    """What the demo measured."""

    seed: int
    preset: str
    seconds: float
    peak_rss_mb: int
    domains: dict[str, DomainScores]
    transfer: dict[str, TransferFacts]
    general: "GeneralFigures"
    routing: RoutingScores
    tokens_added: dict[str, float]  # to the prompt, by method
    stages: dict[str, float]  # seconds
    samples: list[Sample]


@dataclass(frozen=True)
class TestRow:
    """A test question of a domain and what is known of it."""

    example: Example
    unseen_wording: bool
    new_value: bool


def demo(
    folder: Path, seed: int, preset: str = PRESET, entities: int = ENTITIES, real: bool = False
) -> DemoFigures:
    """Make the project of a seed, build its domains, evaluate everything, and return the figures.

    With `real`, the natural-English world for a real language model; else two domains for the pocket models.
    """
    started = time.monotonic()
    project = (
        make_project(folder, seed, entities, preset) if not real else make_real_project(folder, seed, preset)
    )
    base_files = _base_files(project)
    from gag.engine.engine import LocalGAG
    from gag.stages.build import build

    domains = list(project.settings.domains)
    stages = build(project, domains)
    clock = time.monotonic()
    gag = LocalGAG(project)
    scored = {domain: _evaluate_domain(gag, project, domain, apart=not real) for domain in domains}
    general = _evaluate_general(gag, project, base_files)
    routing = _evaluate_routing(gag, project, domains)
    stages["evaluate"] = round(time.monotonic() - clock, 2)
    return DemoFigures(
        seed=seed,
        preset=preset,
        seconds=round(time.monotonic() - started, 1),
        peak_rss_mb=round(peak_bytes() / 2**20),
        domains={domain: scores for domain, (scores, _) in scored.items()},
        transfer={name: found for name in domains if (found := gag.domains.facts(name).scores.transfer)},
        general=general,
        routing=routing,
        tokens_added=_means([added for _, added in scored.values()]),
        stages=stages,
        samples=_samples(gag, project, domains),
    )


def make_project(
    folder: Path, seed: int, entities: int = ENTITIES, preset: str = PRESET, hard: bool = False
) -> Project:
    """Write the world's project, or the same one again over an earlier demo; anything else is left alone."""
    header = f"{MARKER}{seed}, preset {preset}{', with hard questions' if hard else ''}\n"
    with _demo_folder(folder, header):
        write_project(folder, seed, entities, header, preset, hard)
    return load_project(folder)


def make_real_project(
    folder: Path, seed: int, preset: str = "salient", variants: dict[str, Any] | None = None, stated: int = 1
) -> Project:
    """Write the natural-English world's project, or the same one again over an earlier demo."""
    header = f"{MARKER}{seed}, natural English, preset {preset}, facts in a text: {stated}\n"
    with _demo_folder(folder, header):
        write_trade(folder, seed, header, preset, stated=stated, variants=variants)
    return load_project(folder)


@contextmanager
def _demo_folder(folder: Path, header: str) -> Iterator[None]:
    """Hold a demo's folder; what another world's runs left unfinished is cleared."""
    _check_folder(folder)
    from gag.project.artifacts import locked

    path = folder / PROJECT_FILE
    with locked(folder / "runs"):
        if path.is_file() and not path.read_text(encoding="utf-8").startswith(header):
            for unfinished in (folder / "runs").glob("**/*.unfinished"):
                shutil.rmtree(unfinished)
        yield


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something other than a demo."""
    path = folder / PROJECT_FILE
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(MARKER):
        raise SettingsError(f"{folder} holds a project that is not a demo; choose another --dir")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; choose another --dir")
    if folder.is_dir() and not path.is_file() and any(p.name != "runs" for p in folder.iterdir()):
        raise SettingsError(f"{folder} is not empty and holds no demo; choose another --dir")


def _base_files(project: Project) -> dict[str, str]:
    """Hash every file of the base."""
    named = project.root / project.settings.base.model
    files = sorted(named.iterdir()) if named.is_dir() else [named] if named.is_file() else []
    return {path.name: digest(path) for path in files}  # of the hub's cache none


def _evaluate_domain(
    gag: "LocalGAG", project: Project, domain: str, apart: bool
) -> tuple[DomainScores, dict[str, float]]:
    """Score every method on the domain's test questions -> scores, and the tokens that each method added.

    `apart`: facts of a new value do not count among the seen and unseen wordings.
    """
    say(f"evaluate {domain}")
    from gag.evaluation.answers import answer_cases
    from gag.evaluation.metrics import contains

    rows = _test_rows(project, domain)
    corpus = read_passages(project.root / "data" / domain / "corpus.jsonl")
    results = answer_cases(gag, domain, _cases(rows, corpus), corpus)
    right = {
        name: [contains(t, r.example.answers) for t, r in zip(result.texts, rows, strict=True)]
        for name, result in results.items()
    }

    def shares(keep: list[bool]) -> Shares:
        return {
            name: round(sum(h for h, k in zip(hits, keep, strict=True) if k) / sum(keep), 4)
            for name, hits in right.items()
        }

    new_values = shares([row.new_value for row in rows])
    scores = DomainScores(
        seen_wordings=shares([not row.unseen_wording and not (apart and row.new_value) for row in rows]),
        unseen_wordings=shares([row.unseen_wording and not (apart and row.new_value) for row in rows]),
        new_values=new_values,
        gag_new_values=new_values["gag"],
        questions=len(rows),
        facts=len({row.example.group for row in rows}),
    )
    return scores, {name: result.tokens_added for name, result in results.items()}


def _cases(rows: list[TestRow], corpus: list[Passage]) -> list["Case"]:
    """Pair each question with one whose vectors are wrong for it, and the gold statement with near misses."""
    from gag.evaluation.answers import Case

    rng = random.Random(0)
    statements = {passage.id: passage.text for passage in corpus}
    cases = []
    for row in rows:
        example = row.example
        entity, relation = example.group.split("/")
        asked_alike = [r.example for r in rows if r.example.group.endswith(f"/{relation}")]
        wrong = [other for other in asked_alike if other.answers != example.answers]
        others = [id for id in statements if id != example.group]
        near = [id for id in others if id.startswith(f"{entity}/")]
        far = [id for id in others if id.endswith(f"/{relation}")]
        chosen = [example.group, *rng.sample(near, 1), *rng.sample(far, 2)]
        rng.shuffle(chosen)
        cases.append(Case(example, rng.choice(wrong), " ".join(statements[id] for id in chosen)))
    return cases


def _evaluate_general(gag: "LocalGAG", project: Project, base_files: dict[str, str]) -> "GeneralFigures":
    """Compare the general route with the stock base, whose files must be those from before the build too."""
    say("evaluate general")
    from gag.evaluation.general import evaluate_general

    figures = evaluate_general(gag, _general_rows(project), project.settings.base)
    return replace(figures, identical=figures.identical and _base_files(project) == base_files)


def _evaluate_routing(gag: "LocalGAG", project: Project, domains: list[str]) -> RoutingScores:
    """Route every test question of every domain and of general."""
    labelled = [(row.question, GENERAL) for row in _general_rows(project)]
    labelled += [(row.example.question, domain) for domain in domains for row in _test_rows(project, domain)]
    routes = gag.route([question for question, _ in labelled])
    pairs = Counter((truth, route.domain) for (_, truth), route in zip(labelled, routes, strict=True))
    names = [GENERAL, *domains]
    return RoutingScores(
        accuracy=round(sum(pairs[name, name] for name in names) / len(labelled), 4),
        questions=len(labelled),
        confusion={truth: {route: pairs[truth, route] for route in names} for truth in names},
    )


def _means(added: list[dict[str, float]]) -> dict[str, float]:
    """Average figures by method over the domains."""
    return {name: round(sum(one[name] for one in added) / len(added), 2) for name in added[0]}


def _samples(gag: "LocalGAG", project: Project, domains: list[str]) -> list[Sample]:
    """Ask one question of each domain, and general ones until the base knows the answer."""
    from gag.evaluation.metrics import contains

    rows = [
        min((r for r in _test_rows(project, d) if r.unseen_wording), key=lambda r: r.new_value).example
        for d in domains
    ]
    general = _general_rows(project)[:GENERAL_ASKED]
    asked = [*rows[: SAMPLES - 1], *general]
    answers = gag.ask([row.question for row in asked])
    told = [
        Sample(row.question, answer.route.domain, answer.text, row.answers[0])
        for row, answer in zip(asked, answers, strict=True)
    ]
    known = next((one for one in told[-len(general) :] if contains(one.answer, (one.gold,))), told[-1])
    return [*told[: -len(general)], known]


def _test_rows(project: Project, domain: str) -> list[TestRow]:
    path = project.file(str(project.described(domain).test))
    flags = [row for _, row in read_rows(path)]
    examples = read_examples(path)
    return [
        TestRow(e, f["wording"] == "unseen", f["new_value"]) for e, f in zip(examples, flags, strict=True)
    ]


def _general_rows(project: Project) -> list[Example]:
    return read_examples(project.file("data/general/test.jsonl"))

"""`gag evaluate` and `gag compare`: how good the answers are, and how other methods do on the same ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gag.commands.options import (
    EngineOption,
    JsonOption,
    ProjectOption,
    SetOption,
    finish,
    open_project,
    routed,
    with_engine,
)
from gag.errors import SettingsError

BEFORE = ("base", "text", "bm25-1", "bm25-3", "gag", "untrained", "words")  # of --real, before its variants
BEHIND = ("shuffled", "zero", "expert")

if TYPE_CHECKING:
    from gag.evaluation.labelled import LabelledQuestion
    from gag.project.project import Project


def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DOMAIN...]", help="Domains and general (default: all with test rows)."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Other rows in place of the test rows; domains may be mixed.")
    ] = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Also measure what the vectors did for each answer.")
    ] = False,
    project: ProjectOption = None,
    engine: EngineOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer test questions on the router's route and on the true one, and score them; again, it goes on."""
    opened = routed(project, with_engine(settings, engine), names)
    if names and file:
        raise SettingsError("give domains or --file, not both")
    rows = _rows(opened, names, file)
    from gag.evaluation.evaluate import evaluate as run
    from gag.evaluation.evaluate import run_name
    from gag.evaluation.summary import evaluation_lines
    from gag.project.artifacts import locked

    name = run_name(opened, file, rows) if file else "-".join(names or ["all"])
    with locked(opened.root / "runs"):
        summary = run(opened, name, rows, evidence)
    shown = "\n".join([*evaluation_lines(summary), f"[{summary.folder}]"])
    finish(as_json, summary.as_json(), shown)


def compare(
    domain: Annotated[
        str | None, typer.Argument(help="A domain that is built (with --demo: its first).")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Some of them, with commas: gag,bm25,dense-3,lora (default: all).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer questions, one learning rate a baseline, no variants.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="On the bundled world, which is built first where it is not there.")
    ] = False,
    real: Annotated[
        bool, typer.Option("--real", help="On the natural-English world with a real model, SmolLM2-135M.")
    ] = False,
    seed: Annotated[int, typer.Option(help="With --demo or --real: the seed of the world.")] = 7,
    facts: Annotated[
        int, typer.Option(min=1, max=12, help="With --real: facts in each of the expert's texts.")
    ] = 1,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="With --demo or --real: where its project is (default: gag-compare...)."),
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put GAG, its controls, retrieval and tuning to the same questions, and write a report."""
    given = {"DOMAIN": domain and real, "--project": project, "--set": settings, "--demo": demo and real}
    if (real or demo) and (odd := next((name for name, value in given.items() if value), None)):
        raise SettingsError(f"{odd} has no effect beside --{'real' if real else 'demo'}; leave it out")
    if real:
        opened, domain = _of_real(folder or Path(f"gag-compare-real-{facts}"), seed, facts)
    elif demo:
        opened, domain = _of_demo(folder or Path("gag-compare"), seed, domain)
    else:
        opened, domain = _of_project(project, settings, domain)
    opened.require(domain)
    from gag.evaluation.compare import run_comparison
    from gag.evaluation.report import compare_lines

    chosen = [name.strip() for name in methods.split(",")] if methods else None
    if real and not chosen:
        chosen = [*BEFORE, *([] if quick else opened.settings.evaluation.variants), *BEHIND]
    found, page = run_comparison(opened, domain, chosen, quick)
    where = str(page.relative_to(opened.root))
    shown = "\n".join([*compare_lines(found), f"[{where}]"])
    finish(as_json, found.as_json() | {"report": where}, shown)


def _rows(opened: "Project", names: list[str] | None, file: Path | None) -> list["LabelledQuestion"]:
    """Read a file, or the test rows of domains; some of them must have a gold answer."""
    from gag.evaluation.labelled import read_labelled, read_test_rows, those_here
    from gag.project.settings import GENERAL

    present = opened.present()
    tested = [name for name, domain in opened.settings.domains.items() if domain.test and name in present]
    if file:
        rows = those_here(read_labelled(file, opened.settings.labels), [GENERAL, *present])
    else:
        rows = read_test_rows(opened, names or [GENERAL, *tested])
    if not any(row.answers for row in rows):
        raise SettingsError('no row has a gold "answer": there is nothing to score; add answers')
    return rows


def _of_project(
    project: Path | None, settings: list[str] | None, domain: str | None
) -> tuple["Project", str]:
    """Open a project that describes the domain."""
    opened = open_project(project, settings)
    if domain is None:
        present = ", ".join(opened.present()) or "none"
        raise SettingsError(f"name a domain (present: {present}), or take --demo")
    opened.described(domain)
    return opened, domain


def _of_demo(folder: Path, seed: int, domain: str | None) -> tuple["Project", str]:
    """Build the bundled world with hard questions, or take it where it stands; default: its first domain."""
    from gag.commands.demo import make_project
    from gag.pocket.write import HARD_ENTITIES

    opened = make_project(folder, seed, HARD_ENTITIES, hard=True)
    domains = list(opened.settings.domains)
    chosen = domain or domains[0]
    opened.described(chosen)
    from gag.stages.build import build

    build(opened, domains)
    return opened, chosen


def _of_real(folder: Path, seed: int, facts: int) -> tuple["Project", str]:
    """Build the natural-English world, or take it where it stands."""
    from gag.commands.demo import make_real_project
    from gag.pocket.write_trade import real_variants
    from gag.stages.build import build

    opened = make_real_project(folder, seed, variants=real_variants(facts), stated=facts)
    domains = list(opened.settings.domains)
    build(opened, domains)
    return opened, domains[0]

"""`gag evaluate` and `gag compare`: how good the answers are, and how other methods do on the same questions."""

from pathlib import Path
from typing import Annotated

import typer

from gag.commands.options import JsonOption, ProjectOption, SetOption, finish, open_project
from gag.errors import SettingsError


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
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer test questions on the router's route and on the true one, and score them; running it again goes on."""
    opened = open_project(project, settings)
    from gag.project.settings import GENERAL

    for name in names or []:
        opened.require(name)
    if not opened.general.is_dir():
        raise SettingsError(
            "the project has no general bank yet; run `gag build DOMAIN` or `gag prototypes general`"
        )
    from gag.evaluation.labelled import read_asked, read_test_rows

    if names and file:
        raise SettingsError("give domains or --file, not both")
    tested = [
        name for name, domain in opened.settings.domains.items() if domain.test and name in opened.present()
    ]
    chosen = names or [GENERAL, *tested]
    rows = read_asked(file, opened.settings.labels) if file else read_test_rows(opened, chosen)
    if not any(row.answers for row in rows):
        raise SettingsError('no row has a gold "answer": there is nothing to score; add answers')
    from gag.evaluation.evaluate import evaluate as run
    from gag.evaluation.evaluate import evaluation_lines
    from gag.project.artifacts import locked

    run_name = file.stem if file else "-".join(names or ["all"])
    with locked(opened.root / "runs"):
        summary = run(opened, run_name, rows, evidence)
    where = f"runs/evaluation/{run_name}"
    finish(as_json, {**summary, "folder": where}, "\n".join([*evaluation_lines(summary), f"[{where}]"]))


def compare(
    domain: Annotated[
        str | None, typer.Argument(help="A domain that is built (with --demo: its first).")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Some of them, with commas: gag,bm25,lora (default: all).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer questions and one learning rate for each baseline.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="On the bundled world, which is built first where it is not there.")
    ] = False,
    seed: Annotated[int, typer.Option(help="With --demo: the seed of the world.")] = 7,
    folder: Annotated[Path, typer.Option("--dir", help="With --demo: where its project is.")] = Path(
        "gag-compare"
    ),
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put GAG, its controls, retrieval and tuning to the same questions, and write a report."""
    if demo:
        from gag.commands.demo import make_project
        from gag.pocket.write import HARD_ENTITIES

        opened = make_project(folder, seed, HARD_ENTITIES, hard=True)
        domain = domain or next(iter(opened.settings.domains))
    else:
        opened = open_project(project, settings)
    if domain is None:
        raise SettingsError(
            f"name a domain (present: {', '.join(opened.present()) or 'none'}), or take --demo"
        )
    opened.described(domain)
    if demo:
        from gag.stages.build import build

        build(opened, list(opened.settings.domains))
    opened.require(domain)
    from gag.evaluation.comparison import run_comparison
    from gag.evaluation.report import compare_lines

    chosen = [name.strip() for name in methods.split(",")] if methods else None
    result, page = run_comparison(opened, domain, chosen, quick)
    where = page.relative_to(opened.root)
    finish(as_json, {**result, "report": str(where)}, "\n".join([*compare_lines(result), f"[{where}]"]))

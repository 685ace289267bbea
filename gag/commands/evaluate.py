"""`gag evaluate` and `gag compare`: how good the answers are, and how other methods do on the same questions."""

from pathlib import Path
from typing import Annotated

import typer

from gag.commands.options import JsonOption, ProjectOption, SetOption, finish, open_project
from gag.errors import SettingsError


def evaluate(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[DOMAIN...]", help="Domains and general (default: all with test rows).")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Other rows in place of the test rows; domains may be mixed.")] = None,
    evidence: Annotated[bool, typer.Option("--evidence", help="Also measure what the vectors did for each answer.")] = False,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer test questions on the router's route and on the true one, and score them; running it again goes on."""
    opened = open_project(project, settings)
    from gag.settings import GENERAL

    for name in names or []:
        opened.require(name)
    if not opened.general.is_dir():
        raise SettingsError("the project has no general bank yet; run `gag build DOMAIN` or `gag prototypes general`")
    from gag.evaluation.asked import read_asked, test_rows

    chosen = names or [GENERAL, *(name for name in opened.settings.domains if name in opened.present())]
    rows = read_asked(file, opened.settings.labels) if file else test_rows(opened, chosen)
    if not any(row.answers for row in rows):
        raise SettingsError('no row has a gold "answer": there is nothing to score; add answers')
    from gag.artifacts import locked
    from gag.evaluation.evaluate import evaluate as run
    from gag.evaluation.evaluate import evaluation_lines

    run_name = file.stem if file else "-".join(names or ["all"])
    with locked(opened.root / "runs"):
        summary = run(opened, run_name, rows, evidence)
    where = f"runs/evaluation/{run_name}"
    finish(as_json, {**summary, "folder": where}, "\n".join([*evaluation_lines(summary), f"[{where}]"]))

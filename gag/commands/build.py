"""`gag build`, its stages one by one, `gag plan` and `gag export`: from rows to a plug-in domain."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gag.commands.options import (
    DomainArgument,
    EngineOption,
    JsonOption,
    ProjectOption,
    SetOption,
    described,
    finish,
    open_project,
    with_engine,
)
from gag.errors import SettingsError

if TYPE_CHECKING:
    from gag.project.project import Project
    from gag.readout.store import Shard

export_app = typer.Typer(help="Write a domain's data for other tools.", no_args_is_help=True)


def build(
    names: Annotated[list[str], typer.Argument(metavar="DOMAIN...", help="Domains that gag.yaml describes.")],
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run every missing stage of the domains and put their plug-in folders together."""
    opened = open_project(project, settings)
    for name in names:
        opened.described(name)
    from gag.project.inputs import check

    check(opened.settings, opened.root, [opened.inputs(name) for name in names])
    from gag.stages.build import build as run

    seconds = run(opened, list(dict.fromkeys(names)))
    finish(as_json, {"domains": names, "stages": seconds}, f'built {", ".join(names)}; now: gag ask "..."')


def plan(
    domain: DomainArgument,
    gpus: Annotated[
        str | None, typer.Option(help="Devices such as 8x80GB (default: this machine's).")
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say before any weights are downloaded whether a build fits, how long it takes, and what it writes."""
    opened = described(domain, project, settings)
    from gag.planning.plan import plan as run

    made = run(opened, domain, gpus)
    finish(as_json, asdict(made), "\n".join(made.lines()))


def adapt(
    domain: DomainArgument,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take a checkpoint that was tuned elsewhere: an adapter or full weights."
        ),
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage I: teach the domain's expert, or take one that was tuned elsewhere."""
    opened = described(domain, project, settings)
    if source is not None:
        from gag.stages.adapt import adopt

        _stage(opened, lambda project, domain: adopt(project, domain, source), domain, as_json)
        return
    from gag.stages.adapt import adapt as run

    _stage(opened, run, domain, as_json)


def readouts(
    domain: DomainArgument,
    shard: Annotated[
        str | None, typer.Option(help="Write a share alone: 2/8 is the second of eight.")
    ] = None,
    project: ProjectOption = None,
    engine: EngineOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the expert write on every alignment question and store its states."""
    opened = described(domain, project, with_engine(settings, engine))
    chosen = _shard(shard)
    from gag.stages.readouts import readouts as run

    _stage(opened, lambda project, domain: run(project, domain, chosen), domain, as_json, shard)


def align(
    domain: DomainArgument,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage II: train the domain's projector on the stored readouts."""
    opened = described(domain, project, settings)
    from gag.stages.align import align as run

    _stage(opened, run, domain, as_json)


def bridge(
    texts: Annotated[Path, typer.Argument(help='Plain text to learn from: {"text": ...} per line.')],
    name: Annotated[str, typer.Option(help="The bridge's name: bridges/NAME in the project.")] = "bridge",
    licence: Annotated[str, typer.Option(help="Of the texts, for the bridge's card.")] = "not stated",
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a projector for base and backbone on plain text, from which domains start (align.bridge)."""
    opened = open_project(project, settings)
    from gag.project.artifacts import locked
    from gag.project.settings import check_name
    from gag.stages.bridge import bridge as run

    with locked(opened.root / "runs"):
        folder = run(opened, texts, opened.root / "bridges" / check_name(name), licence)
    written = str(folder.relative_to(opened.root))
    finish(as_json, {"bridge": written}, f"{written}; now: set align.bridge: {written}")


def prototypes(
    domain: Annotated[str, typer.Argument(help="A domain that gag.yaml describes, or general.")],
    add: Annotated[
        Path | None,
        typer.Option(
            help="Add this file's questions to the bank of a domain that is present; needs no old ones."
        ),
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the router's bank of a domain, or of general; or add questions to it."""
    from gag.project.settings import GENERAL

    if add is not None:
        opened = open_project(project, settings)
        opened.require(domain)
        from gag.stages.prototypes import add_questions

        _stage(opened, lambda project, domain: add_questions(project, domain, add), domain, as_json)
        return
    opened = open_project(project, settings) if domain == GENERAL else described(domain, project, settings)
    from gag.stages.prototypes import prototypes as run

    _stage(opened, run, domain, as_json)


@export_app.command("llamafactory")
def export_llamafactory(
    domain: DomainArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a domain's stage I for LLaMA-Factory: rows as Alpaca data, and a training file for each step."""
    opened = described(domain, project, settings)
    from gag.training.llamafactory import export_llamafactory as run

    written = [path.name for path in run(opened, domain, folder)]
    shown = (
        f"wrote {', '.join(written)} into {folder}; tuned there, take it with: gag adapt {domain} --from DIR"
    )
    finish(as_json, {"domain": domain, "folder": str(folder), "files": written}, shown)


def _shard(text: str | None) -> "Shard | None":
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise SettingsError(f"--shard {text!r} is not of the form 2/8 (the second of eight)")
    from gag.readout.store import Shard

    return Shard(int(index) - 1, int(count))


def _stage(
    project: "Project",
    run: Callable[["Project", str], Path],
    domain: str,
    as_json: bool,
    shard: str | None = None,
) -> None:
    from gag.project.artifacts import locked

    runs = project.root / "runs"
    with (
        locked(runs, shared=shard is not None),
        locked(runs / f"shard-{shard.replace('/', '-of-')}") if shard else nullcontext(),
    ):
        folder = run(project, domain)
    written = str(folder.relative_to(project.root))
    finish(as_json, {"domain": domain, "folder": written}, written)

"""The command line: one verb, one call. Results on stdout, progress and errors on stderr.

Nothing heavy is imported before a command's settings, names and paths are checked.
"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gag.commands.domains import domains_app
from gag.commands.evaluate import compare, evaluate
from gag.commands.options import (
    DomainArgument,
    JsonOption,
    Preset,
    ProjectOption,
    SetOption,
    asked,
    described,
    finish,
    open_project,
)
from gag.commands.router import route, router_app
from gag.errors import GagError, SettingsError, is_full_disk
from gag.project import distributed

if TYPE_CHECKING:
    from gag.project.project import Project
    from gag.readout.store import Shard

app = typer.Typer(
    help="Generation-Augmented Generation: private knowledge for a frozen language model, through one injected vector.",
    epilog="Start with `gag demo`. Each command explains itself with --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(domains_app, name="domains")
app.add_typer(router_app, name="router")
export_app = typer.Typer(help="Write a domain's data for other tools.", no_args_is_help=True)
app.add_typer(export_app, name="export")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="The seed of the private world.")] = 7,
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo's project goes.")] = Path("gag-demo"),
    preset: Annotated[
        Preset, typer.Option(help="v1, v4: the paper's; vocabulary: one vector of what the expert foretells.")
    ] = "vocabulary",
    as_json: JsonOption = False,
) -> None:
    """Build two private domains for the bundled pocket models on this machine, and show what changes."""
    from gag.commands.demo import demo as run

    figures = run(folder, seed, preset)
    if not as_json:
        from gag.commands.demo_report import show

        show(figures, folder)
    finish(as_json, figures)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder of the new project.")] = Path(),
    domain: Annotated[str, typer.Option(help="The name of the first domain.")] = "materials",
    base: Annotated[
        str, typer.Option(help="The frozen base: a Hugging Face id or a folder.")
    ] = "Qwen/Qwen3-8B",
    expert: Annotated[
        str, typer.Option(help="The expert backbone: a Hugging Face id or a folder.")
    ] = "Qwen/Qwen3-1.7B",
    preset: Annotated[
        Preset, typer.Option(help="v1, v4: the paper's; vocabulary: one vector of what the expert foretells.")
    ] = "v1",
    as_json: JsonOption = False,
) -> None:
    """Write gag.yaml for real models, with every setting that one usually changes."""
    from gag.project.project import write_example

    path = write_example(folder, domain, base, expert, preset)
    finish(
        as_json,
        {"project": str(path)},
        f"wrote {path}; put rows into data/{domain}/train.jsonl, then: gag build {domain}",
    )


@app.command()
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

    check(opened, names)
    from gag.stages.build import build as run

    seconds = run(opened, list(dict.fromkeys(names)))
    finish(as_json, {"domains": names, "stages": seconds}, f'built {", ".join(names)}; now: gag ask "..."')


@app.command()
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


@app.command()
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
        from gag.stages.adopt import adopt

        _stage(opened, lambda project, domain: adopt(project, domain, source), domain, as_json)
        return
    from gag.stages.adapt import adapt as run

    _stage(opened, run, domain, as_json)


@app.command()
def readouts(
    domain: DomainArgument,
    shard: Annotated[
        str | None, typer.Option(help="Write a share alone: 2/8 is the second of eight.")
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the expert write on every alignment question and store its states."""
    opened = described(domain, project, settings)
    chosen = _shard(shard)
    from gag.stages.readouts import readouts as run

    _stage(opened, lambda project, domain: run(project, domain, chosen), domain, as_json, shard)


@app.command()
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


@app.command()
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


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    domain: Annotated[str | None, typer.Option(help="Skip the router: a domain, or general.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Also show what the expert wrote.")
    ] = False,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Also show what the vectors did for the answer.")
    ] = False,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question: routed, read, injected, and decoded by the frozen base."""
    opened = asked(question, project, settings)
    if domain is not None:
        opened.require(domain)
    from gag.engine.engine import GAG

    gag = GAG(opened)
    answer = gag.ask([question], domain)[0]
    result = asdict(answer)
    if not (background or evidence):
        del result["background"]
    if evidence:
        from gag.engine.evidence import evidence_of

        result["evidence"] = evidence_of(gag, answer)
    count = answer.tokens_added
    added = f"{count} vector{'s' if count > 1 else ''}" if count else "nothing"
    shown = f"{answer.text}\n[{answer.route.domain} {answer.route.score:.3f}; {added} added to the prompt]"
    if (background or evidence) and answer.background:
        shown += f"\n[expert: {answer.background}]"
    if evidence:
        shown += "\n" + "\n".join(_evidence_lines(result["evidence"]))
    finish(as_json, result, shown)


app.command()(route)
app.command()(evaluate)
app.command()(compare)


@export_app.command("llamafactory")
def export_llamafactory(
    domain: DomainArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a domain's stage I for LLaMA-Factory: its rows as Alpaca data, and a training file for each step."""
    opened = described(domain, project, settings)
    from gag.training.llamafactory import export_llamafactory as run

    written = [path.name for path in run(opened, domain, folder)]
    shown = (
        f"wrote {', '.join(written)} into {folder}; tuned there, take it with: gag adapt {domain} --from DIR"
    )
    finish(as_json, {"domain": domain, "folder": str(folder), "files": written}, shown)


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(prog_name="gag")
    except GagError as error:
        _refuse(str(error))
    except Exception as error:
        if not is_full_disk(error):
            raise
        _refuse(
            "the disk is full; free some space and run the same command again: what is complete stays, and it goes on"
        )
    finally:
        distributed.destroy()


def _refuse(reason: str) -> NoReturn:
    print(f"gag: {' '.join(reason.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _evidence_lines(found: dict[str, Any]) -> list[str]:
    if found["support"] is None:
        return ["[no vectors, or an empty answer: there is nothing to weigh]"]
    lines = [
        f"[support {found['support']:+.2f}: log odds per token that the vectors add to the answer, against zero vectors]"
    ]
    return lines + [
        f"[near question, cosine {cosine:.3f}: {question}]" for question, cosine in found["questions"]
    ]


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

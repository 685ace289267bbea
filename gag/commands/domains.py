"""`gag domains`: list, show, add, import, push, pull, merge, verify and remove a project's domain folders."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gag.commands.options import JsonOption, ProjectOption, finish, open_project
from gag.errors import SettingsError

domains_app = typer.Typer(
    help="List, show, add, import, push, pull, merge, verify and remove the domain folders of a project.",
    no_args_is_help=True,
)


@domains_app.command("list")
def domains_list(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """List the domains that are present."""
    opened = open_project(project)
    from gag.project.listing import list_domains

    rows = list_domains(opened)
    header = f"{'domain':<20} {'built':<11} {'tuning':<7} {'MB':>8} {'val loss':>9}  base"
    lines = [
        f"{r.name:<20} refused: {r.refusal}"
        if r.refusal
        else f"{r.name:<20} {r.built:<11} {r.tuning:<7} {r.megabytes:>8.2f} {_loss(r.val_loss):>9}  {r.base}"
        for r in rows
    ]
    shown = (
        "\n".join([header, *lines])
        if rows
        else "no domains yet; run `gag build DOMAIN` or `gag domains add FOLDER`"
    )
    finish(as_json, {"domains": [asdict(row) for row in rows]}, shown)


@domains_app.command("show")
def domains_show(name: str, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Show a domain's card."""
    opened = open_project(project)
    opened.require(name)
    from gag.project.listing import show_domain

    domain = show_domain(opened, name)
    finish(
        as_json, domain.facts.model_dump(), (domain.folder / "README.md").read_text(encoding="utf-8").rstrip()
    )


@domains_app.command("add")
def domains_add(
    folder: Annotated[Path, typer.Argument(help="A domain folder, such as other-project/domains/materials.")],
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plug in a domain folder after checking that it is whole and fits the project's models."""
    opened = open_project(project)
    if not folder.is_dir():
        raise SettingsError(
            f"{folder} is not a folder; point at a domain folder, such as other-project/domains/materials"
        )
    from gag.engine.domains import add_domain

    name = add_domain(opened, folder)
    finish(as_json, {"added": name}, f"added {name}")


@domains_app.command("push")
def domains_push(
    name: str,
    repository: Annotated[str, typer.Argument(help="On the model hub: owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="Open to others, if it is new.")] = False,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a domain's folder on a model hub."""
    opened = open_project(project)
    opened.require(name)
    from gag.engine.hub import push_domain

    commit = push_domain(opened, name, repository, private=not public)
    again = f"gag domains pull {repository} --revision {commit}"
    finish(as_json, {"pushed": name, "repository": repository, "commit": commit}, f"pushed {name}; {again}")


@domains_app.command("pull")
def domains_pull(
    repository: Annotated[str, typer.Argument(help="On the model hub: owner/name.")],
    revision: Annotated[
        str | None, typer.Option(help="A commit, a tag or a branch (default: the newest commit).")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plug in a domain from a model hub after checking that it is whole and fits the project's models."""
    opened = open_project(project)
    from gag.engine.hub import pull_domain

    name, commit = pull_domain(opened, repository, revision)
    finish(as_json, {"added": name, "commit": commit}, f"added {name}, of commit {commit}")


@domains_app.command("import")
def domains_import(
    name: Annotated[str, typer.Argument(help="A domain that gag.yaml describes, or general.")],
    prototypes: Annotated[Path, typer.Option(help="Its prototypes: a .pt file.")],
    expert: Annotated[Path | None, typer.Option(help="Its stage-I checkpoint: a folder.")] = None,
    projector: Annotated[
        Path | None, typer.Option(help="Its projector: ckpt.pth, or the folder of stage II.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take what the method's published code trained; prototypes alone are a bank without an expert."""
    opened = open_project(project)
    from gag.project.settings import GENERAL
    from gag.stages.published import import_bank, import_domain

    for path in (prototypes, expert, projector):
        if path is not None and not path.exists():
            raise SettingsError(f"{path} is not there; point at what the published code wrote")
    if (expert is None) != (projector is None) or (expert and name == GENERAL):
        raise SettingsError("a domain takes --expert and --projector together, and general neither of them")
    if expert and projector:
        folder = import_domain(opened, name, expert, projector, prototypes)
    else:
        folder = import_bank(opened, name, prototypes)
    written = str(folder.relative_to(opened.root))
    finish(as_json, {"imported": name, "folder": written}, f"wrote {written}")


@domains_app.command("merge")
def domains_merge(
    name: str,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a domain's expert as a model of its own, for a server without adapters."""
    opened = open_project(project)
    opened.require(name)
    from gag.engine.merge import merge_expert

    merge_expert(opened, name, out)
    served = f"serve it with vLLM, and name that server under remote.experts.{name}"
    finish(as_json, {"merged": name, "folder": str(out)}, f"wrote the expert of {name} to {out}; {served}")


@domains_app.command("verify")
def domains_verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[DOMAIN...]", help="Default: all that are present.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check files against their hashes, and domains against the project's base and expert."""
    opened = open_project(project)
    for name in names or []:
        opened.require(name)
    from gag.engine.domains import verify_domains

    verified = verify_domains(opened, names or [])
    finish(
        as_json,
        {"verified": verified},
        f"{len(verified)} whole and fitting: {', '.join(verified) or 'none present'}",
    )


@domains_app.command("remove")
def domains_remove(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a domain's folder away; its data and runs stay."""
    opened = open_project(project)
    opened.require(name)
    if not yes:
        typer.confirm(f"Remove domains/{name}?", abort=True, err=True)
    from gag.engine.domains import remove_domain

    remove_domain(opened, name)
    finish(as_json, {"removed": name}, f"removed {name}")


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"

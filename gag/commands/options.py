"""What the commands share: options, opening a project, and how a result is printed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gag.errors import SettingsError
from gag.project import distributed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from gag.project.project import Project

ProjectOption = Annotated[
    Path | None,
    typer.Option(
        "--project", help="Folder with gag.yaml (default: GAG_PROJECT, or found from here upwards)."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Lay a setting over gag.yaml: align.epochs=3.")
]
EngineOption = Annotated[
    Literal["transformers", "remote"] | None,
    typer.Option(help="What runs the models: this process, or vLLM servers (default: engine in gag.yaml)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Preset = Literal["v1", "v4", "vocabulary", "salient"]
DomainArgument = Annotated[str, typer.Argument(help="A domain that gag.yaml describes.")]


def open_project(project: Path | None, settings: list[str] | None = None) -> "Project":
    """Read the project's gag.yaml with `--set` laid over it."""
    from gag.project.project import load_project

    return load_project(project, tuple(settings or ()))


def with_engine(settings: list[str] | None, engine: str | None) -> list[str]:
    """Lay the choice of an engine over other settings."""
    return [*(settings or []), *([] if engine is None else [f"engine={engine}"])]


def described(domain: str, project: Path | None, settings: list[str] | None) -> "Project":
    """Open a project that describes a domain."""
    opened = open_project(project, settings)
    opened.described(domain)
    return opened


def asked(question: str, project: Path | None, settings: list[str] | None) -> "Project":
    """Open a project that can route a question."""
    if not question.strip():
        raise SettingsError("the question is empty; ask something")
    from gag.project.rows import check_text

    check_text(question, "the question")
    return routed(project, settings)


def routed(project: Path | None, settings: list[str] | None, names: list[str] | None = None) -> "Project":
    """Open a project in which these domains are present and questions can be routed."""
    opened = open_project(project, settings)
    for name in names or []:
        opened.require(name)
    if not opened.general.is_dir():
        raise SettingsError(
            "the project has no general bank yet; run `gag build DOMAIN` or `gag prototypes general`"
        )
    return opened


def finish(as_json: bool, result: "dict[str, Any] | DataclassInstance", shown: str | None = None) -> None:
    """Print one JSON object, or what is shown to a person."""
    if distributed.rank() > 0:
        return
    if as_json:
        plain = result if isinstance(result, dict) else asdict(result)
        print(json.dumps(plain, ensure_ascii=False))
    elif shown is not None:
        print(shown)

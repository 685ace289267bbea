"""`gag data`: look at files of rows before anything is built from them."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gag.commands.options import JsonOption, ProjectOption, finish
from gag.errors import SettingsError

if TYPE_CHECKING:
    from gag.corpus.findings import Checked
    from gag.project.project import Project

data_app = typer.Typer(help="Look at files of rows before anything is built from them.", no_args_is_help=True)


@data_app.command("check")
def data_check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of rows, or folders of them.")
    ],
    fix: Annotated[
        Path | None, typer.Option(help="A new folder: write a mended copy of each file there.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with rows: shape, copies, empty answers, lengths, leaks, letters, labels.

    Ends with 1 where something would stop a build.
    """
    from gag.commands.corpus import need_corpus

    need_corpus()
    from gag.corpus.checking import Checker
    from gag.corpus.mending import mend

    paths = _files(files)
    opened = _project(project)
    checked = Checker(*_limits(opened)).check(paths)
    written: list[str] = []
    for path in paths if fix else ():
        target = Path(str(fix)) / f"{path.stem}.jsonl"
        mend(path, target)
        written.append(str(target))
    shown = _page(checked) + "".join(f"\nwrote {path}" for path in written)
    finish(as_json, asdict(checked) | {"errors": checked.errors, "written": written}, shown)
    if checked.errors:
        raise typer.Exit(1)


def _files(given: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            kinds = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
            found += sorted(one for one in path.iterdir() if one.suffix.lower() in kinds)
        elif path.is_file():
            found.append(path)
        else:
            raise SettingsError(f"{path} is not there; name files of rows")
    if not found:
        raise SettingsError("there is no file of rows; name .jsonl, .json, .csv or .parquet files")
    return found


def _project(project: Path | None) -> "Project | None":
    from gag.project.project import find_project, load_project

    try:
        find_project(project)
    except SettingsError:
        if project:
            raise
        return None
    return load_project(project)


def _limits(opened: "Project | None") -> tuple[Any, ...]:
    """Return what a project says of rows: its labels, its domains, its tokens, and how many may be."""
    if opened is None:
        return ()
    from tokenizers import Tokenizer

    from gag.corpus.passages import Splitter
    from gag.models.loading import tokenizer_json

    settings = opened.settings
    most = settings.adapt.max_tokens
    count: Callable[[list[str]], list[int]] = Splitter(
        Tokenizer.from_str(tokenizer_json(settings.expert, opened.root)), 512
    ).tokens
    return settings.labels, {*opened.present(), *settings.domains}, count, (most, most)


def _page(checked: "Checked") -> str:
    lines = []
    for file in checked.files:
        longest = f", longest {file.longest[0]} and {file.longest[1]} tokens" if file.longest else ""
        asked = f"{file.rows} rows, {file.questions} questions, {file.answered} answered{longest}"
        lines.append(f"{file.file}: {asked}")
        lines.append(f"  columns: {', '.join(f'{name} {count}' for name, count in file.columns.items())}")
        if file.labels:
            lines.append(
                f"  belong to: {', '.join(f'{name} {count}' for name, count in file.labels.items())}"
            )
    for one in checked.findings:
        more = f" and {one.count - len(one.lines)} more" if one.count > len(one.lines) else ""
        where = f"line{'s' if one.count > 1 else ''} {', '.join(map(str, one.lines))}{more}"
        lines.append(f"{one.level}: {one.file}: {one.what} ({one.count}: {where}); {one.cure}")
    if not checked.findings:
        lines.append("nothing is wrong")
    return "\n".join(lines)

"""`gag corpus`: from a folder of documents to passages, and to questions and answers."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gag.commands.options import JsonOption, ProjectOption, finish
from gag.errors import DataError, MissingExtraError, SettingsError

if TYPE_CHECKING:
    from gag.corpus.build import CorpusReport
    from gag.corpus.questions import QuestionsReport
    from gag.project.settings import ModelSettings

corpus_app = typer.Typer(
    help="From a folder of documents to passages, and to questions and answers.", no_args_is_help=True
)
Documents = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...",
        help="Files or folders: Markdown, text, HTML, PDF, JSONL, CSV, Parquet, MinerU's output.",
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="Turn a rule of cleaning off: references, acknowledgements, authors, images, furniture, "
        "repeated, contents, or all.",
    ),
]


@corpus_app.command("build")
def corpus_build(
    inputs: Documents,
    out: Annotated[Path, typer.Option(help="The corpus to write.")] = Path("corpus.jsonl"),
    tokens: Annotated[int, typer.Option(min=16, help="Tokens of a passage, at most.")] = 480,
    least: Annotated[int, typer.Option(min=0, help="Tokens of a passage, at least.")] = 8,
    keep: KeepOption = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Keep documents of this language alone: en, de, zh.")
    ] = None,
    mask: Annotated[
        bool, typer.Option("--mask", help="Write over e-mail addresses and phone numbers.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Whose tokens are counted: a model's folder or id (default: the project's base)."),
    ] = None,
    parser: Annotated[
        str, typer.Option(help="What reads PDFs: pypdfium2, or MinerU 4: mineru, mineru:flash, ...")
    ] = "pypdfium2",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read documents, clean them, and cut them into passages; what did not change is not read again."""
    need_corpus()
    from gag.corpus.build import build_corpus
    from gag.corpus.files import Cutting
    from gag.corpus.parsers import check_parser

    model, root = _counting(tokenizer, project)

    def load() -> str | None:
        from gag.models.loading import tokenizer_json

        return tokenizer_json(model, root) if model else None

    cutting = Cutting(
        tokens,
        least,
        _rules(keep),
        frozenset(language or ()),
        mask,
        model.model if model else "",
        check_parser(parser),
    )
    report = build_corpus(inputs, out, cutting, load)
    finish(as_json, report, None if as_json else corpus_table(report, out, cutting.counted_by))


@corpus_app.command("show")
def corpus_show(
    document: Annotated[Path, typer.Argument(help="A file that `gag corpus build` reads.")],
    keep: KeepOption = None,
) -> None:
    """Print a document as it was read, with what is cut struck through, and the rule beside it."""
    need_corpus()
    from rich.console import Console
    from rich.text import Text

    from gag.corpus.cleaning import clean
    from gag.corpus.documents import Document
    from gag.corpus.reading import find_sources, read_source

    console = Console()
    for source in find_sources([document])[0]:
        if not os.access(source.path, os.R_OK):
            raise DataError(f"{source.name} may not be read; give yourself the right to")
        for found in read_source(source):
            if not isinstance(found, Document):
                console.print(Text(f"{found[0]}: {found[1]}", style="red"))
                continue
            console.print(Text(f"{found.source}: {found.title}", style="bold underline"))
            for block, rule in clean(found, _rules(keep)).pairs:
                style = "red strike" if rule else "bold" if block.kind == "heading" else ""
                mark = Text(f"[{rule}] ", style="red") if rule else Text()
                console.print(mark + Text(block.text, style=style), end="\n\n")


@corpus_app.command("questions")
def corpus_questions(
    corpus: Annotated[Path, typer.Argument(help="The corpus that `gag corpus build` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for train, align, test and refused.jsonl.")] = Path(
        "data"
    ),
    endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, up to /v1; without one, sentences become questions."),
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name there.")] = "gag/general",
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable that holds the endpoint's key.")
    ] = None,
    per_passage: Annotated[int, typer.Option(min=1, max=20, help="Questions to ask for of a passage.")] = 3,
    wordings: Annotated[int, typer.Option(min=1, max=8, help="Wordings of each question.")] = 2,
    budget: Annotated[int | None, typer.Option(min=1, help="Tokens of this run, at most.")] = None,
    together: Annotated[int, typer.Option(min=1, max=256, help="Requests under way at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer.")] = 120,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Documents for test.jsonl.")] = 0.15,
    as_json: JsonOption = False,
) -> None:
    """Make questions and answers of a corpus, check them, and part them by document."""
    need_corpus()
    from gag.corpus.asking import Endpoint
    from gag.corpus.questions import make_questions

    asked = None
    if endpoint:
        key = key_of(key_variable)
        asked = Endpoint(endpoint, model, key, together, budget, timeout)
    report = make_questions(corpus, out, asked, per_passage, wordings, test_share)
    finish(as_json, report, None if as_json else questions_table(report, out))


def key_of(variable: str | None) -> str | None:
    """Read an endpoint's key from the environment."""
    import os

    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SettingsError(f"--key-variable names {variable}, which is empty; set it to the endpoint's key")
    return key


def questions_table(report: "QuestionsReport", out: Path) -> str:
    """Say what came of a corpus's questions."""
    from gag.corpus.screening import REASONS

    lines = [
        f"{out}/train.jsonl: {report.train} rows of {report.documents[0]} documents",
        f"{out}/test.jsonl: {report.test} rows of {report.documents[1]} documents, none of them in training",
        f"kinds: {', '.join(f'{name} {count}' for name, count in report.kinds.items())}",
    ]
    lines += [f"refused: {count} rows, {REASONS[reason]}" for reason, count in report.refused.items()]
    if report.unread:
        lines.append(f"{report.unread} answers of the endpoint held no row")
    if report.spent:
        asked = f"asked {report.spent.asked}, {report.spent.kept} from before, {report.spent.tokens:,} tokens"
        lines.append(asked)
        lines += [f"not answered: {count}, {reason}" for reason, count in (report.spent.failed or {}).items()]
        if report.spent.stopped:
            lines.append(f"stopped early: {report.spent.stopped}; the same command goes on from here")
    return "\n".join(lines)


def need_corpus() -> None:
    """Say which extra is missing, before anything is read."""
    from importlib.util import find_spec

    needed = ("markdown_it", "pypdfium2", "semantic_text_splitter", "datasketch", "trafilatura", "py3langid")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise MissingExtraError(f"documents need {', '.join(missing)}; run `pip install gag[corpus]`")


def _rules(keep: list[str] | None) -> frozenset[str]:
    from gag.corpus.cleaning import RULES

    named = set(keep or ())
    if unknown := sorted(named - RULES.keys() - {"all"}):
        raise SettingsError(f"--keep names no rule: {', '.join(unknown)}; there are {', '.join(RULES)}")
    return frozenset(RULES if "all" in named else named)


def _counting(named: str | None, project: Path | None) -> "tuple[ModelSettings | None, Path]":
    """Find the model whose tokens are counted, and the folder that its name is seen from."""
    from gag.project.project import find_project, load_project
    from gag.project.settings import ModelSettings

    if named:
        return ModelSettings(model=named), Path.cwd()
    try:
        find_project(project)
    except SettingsError:
        if project:
            raise
        return None, Path.cwd()
    opened = load_project(project)
    return opened.settings.base, opened.root


def corpus_table(report: "CorpusReport", out: Path, tokenizer: str) -> str:
    """Say what came of documents."""
    counted = (
        f"tokens of {tokenizer}"
        if tokenizer
        else "tokens, at four characters each: no project's base is here"
    )
    read = f"{report.documents} documents of {report.files} files ({report.read} read now)"
    lines = [
        f"{read}, {report.seconds:.1f} s",
        f"{report.passages} passages in {out}, {report.tokens:,} {counted}",
    ]
    told = {
        "cut, words": report.cut,
        "passages left out": report.dropped,
        "passages that tell of people": report.personal,
        "languages": report.languages,
        "files without a reader": report.unread,
    }
    for label, counts in told.items():
        if counts:
            lines.append(
                f"{label}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
            )
    lines += [f"set aside: {name}: {reason}" for name, reason in report.set_aside]
    return "\n".join(lines)

"""The `gag` program: its verbs, and how an error ends it."""

import os
import sys
from typing import NoReturn

import typer

from gag.commands.ask import ask
from gag.commands.build import adapt, align, bridge, build, export_app, plan, prototypes, readouts
from gag.commands.chat import chat
from gag.commands.corpus import corpus_app
from gag.commands.data import data_app
from gag.commands.domains import domains_app
from gag.commands.evaluate import compare, evaluate
from gag.commands.router import route, router_app
from gag.commands.serve import serve
from gag.commands.start import demo, init
from gag.errors import GagError, is_full_disk, is_full_memory
from gag.project import distributed

app = typer.Typer(
    help="Generation-Augmented Generation: private knowledge for a frozen language model, through "
    "injected vectors.",
    epilog="Start with `gag demo`. Each command explains itself with --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    demo, init, build, plan, adapt, readouts, align, bridge, prototypes, ask, chat, serve, route,
    evaluate, compare,
):  # fmt: skip
    app.command()(verb)
app.add_typer(corpus_app, name="corpus")
app.add_typer(data_app, name="data")
app.add_typer(domains_app, name="domains")
app.add_typer(router_app, name="router")
app.add_typer(export_app, name="export")


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
        if is_full_memory(error):
            _refuse(
                "the memory is full; lower the stage's micro_batch_size or batch_tokens, or take a smaller "
                "model or dtype: `gag plan` says what fits; what is complete stays"
            )
        if is_full_disk(error):
            _refuse(
                "the disk is full; free some space and run the same command again: what is complete stays"
            )
        if isinstance(error, OSError) and error.filename:
            _refuse(f"{error.filename}: {error.strerror}; see that it is there, and may be read and written")
        raise
    finally:
        distributed.destroy()


def _refuse(reason: str) -> NoReturn:
    print(f"gag: {' '.join(reason.split())}", file=sys.stderr)
    raise SystemExit(2) from None

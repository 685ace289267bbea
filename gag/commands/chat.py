"""`gag chat`: a conversation in the terminal; each answer streams, and says where it came from."""

import sys
from typing import Annotated

import typer

from gag.commands.options import EngineOption, ProjectOption, SetOption, routed, with_engine


def chat(
    domain: Annotated[str | None, typer.Option(help="Skip the router: a domain, or general.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Also show what the expert writes, while it does.")
    ] = False,
    project: ProjectOption = None,
    engine: EngineOption = None,
    settings: SetOption = None,
) -> None:
    """Ask again and again; a follow-up stays in its domain. An empty line, or Ctrl-D, ends it."""
    opened = routed(project, with_engine(settings, engine))
    if domain is not None:
        opened.require(domain)
    from gag.engine.asking import Ask, Background, Event, Read, Refused, Routed, Said, Turn
    from gag.engine.engine import ProjectGAG
    from gag.project.rows import check_text

    gag = ProjectGAG(opened)
    turns: list[Turn] = []
    while question := _ask():
        said: list[str] = []

        def show(event: Event, said: list[str] = said) -> None:
            """Write what an event says."""
            match event:
                case Routed(route):
                    _write(f"[{route.domain} {route.score:.3f}: {route.reason}]\n")
                case Background(text) if background:
                    _write(text)
                case Read(knowledge) if background and knowledge and knowledge.text:
                    _write("\n\n")
                case Said(_, text):
                    said.append(text)
                    _write(text)
                case Refused(error):
                    _write(f"gag: {error}")

        ask = Ask((*turns, ("user", check_text(question, "the question"))), domain)
        gag.tell(ask.sent(domain, None, opened.settings.serve.turns), show)
        _write("\n\n")
        if said:
            turns.append(("user", question))
            turns.append(("assistant", "".join(said)))


def _ask() -> str:
    """Read a line; an empty one ends the conversation."""
    if sys.stdin.isatty():
        _write("> ")
    return sys.stdin.readline().strip()


def _write(text: str) -> None:
    print(text, end="", flush=True)

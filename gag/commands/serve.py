"""`gag serve`: a project over HTTP, until it is told to stop."""

import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gag.commands.options import EngineOption, ProjectOption, SetOption, routed, with_engine
from gag.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from gag.serving.server import Server

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen at (default: serve.host, the loopback).")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: any free one (default: serve.port).")] = None,
    new_key: Annotated[
        str | None, typer.Option(help="Make a key of this name, print it once, and end.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="With --new-key: a domain that it may ask (default: all).")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="With --new-key: it may add and remove domains.")
    ] = False,
    ui: Annotated[bool, typer.Option("--ui", help="Also the playground at /ui, for people.")] = False,
    project: ProjectOption = None,
    engine: EngineOption = None,
    settings: SetOption = None,
) -> None:
    """Serve the project over HTTP, with OpenAI's protocols; Ctrl-C stops it once all is answered."""
    opened = routed(project, with_engine(settings, engine))
    chosen = opened.settings.serve
    keys = None if chosen.keys is None else opened.root / chosen.keys
    if keys is not None and not keys.resolve().is_relative_to(opened.root.resolve()):
        raise SettingsError("serve.keys lies outside the project; name a file in it, such as keys.yaml")
    if new_key is not None:
        _make_key(keys, new_key, domain or [], admin)
        return
    try:
        import uvicorn

        from gag.serving.api import make_app
        from gag.serving.keys import Keys

        if ui or chosen.ui:
            import gradio  # noqa: F401
    except ImportError as error:
        extra = "ui" if error.name == "gradio" else "serve"
        raise MissingExtraError(
            f"gag serve needs {error.name}, which is not installed; run `pip install 'gag[{extra}]'`"
        ) from error
    from gag.engine.engine import ProjectGAG
    from gag.project.memory import give_back_freed
    from gag.project.progress import say

    given = {"host": host, "port": port, "ui": ui or None}
    changed = {name: value for name, value in given.items() if value is not None}
    chosen = chosen.model_copy(update=changed)
    known = Keys(keys)
    listening = _listen(chosen.host, chosen.port)
    if chosen.host not in LOOPBACK and not known.are_asked_for:
        say(f"WARNING: anybody who reaches {chosen.host} may ask; make keys with `gag serve --new-key NAME`")
    give_back_freed()
    app = make_app(ProjectGAG(opened), chosen, known)

    class Stopping(uvicorn.Server):
        """Answers what it took before it goes."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            """Stop at the first signal once all is answered, at the second at once."""
            if app.state.server.owner.draining:
                self.should_exit = self.force_exit = True
                return
            threading.Thread(target=self._drain, args=(app.state.server,), daemon=True).start()

        def _drain(self, server: "Server") -> None:
            say("stopping: no more questions are taken; those that were are answered first")
            if not server.owner.stop(chosen.drain_seconds):
                say(f"some were not answered within {chosen.drain_seconds:g} s (serve.drain_seconds)")
            self.should_exit = True

    named = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    place = f"http://{named}:{listening.getsockname()[1]}"
    domains = ", ".join(app.state.server.gag.domains.names) or "none yet"
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10, server_header=False)
    print(f"serving {domains} and general at {place}/v1  (Ctrl-C stops)", flush=True)
    if chosen.ui:
        print(f"playground: {place}/ui", flush=True)
    Stopping(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the models are loaded: one that is taken is said at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"cannot listen at {host}:{port} ({reason}); choose another --port") from error
    listening.set_inheritable(True)
    return listening


def _make_key(path: Path | None, name: str, domains: list[str], admin: bool) -> None:
    if path is None:
        raise SettingsError("gag.yaml names no file of keys; set serve.keys: keys.yaml")
    from gag.serving.keys import new_key

    made = new_key(path, name, domains, admin)
    print(made)
    print(f"this is the key of {name}; {path.name} holds its hash alone, so keep it now", file=sys.stderr)

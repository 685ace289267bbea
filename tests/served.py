"""A server in a thread of the test's own process, on a free port of the loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from gag.engine.engine import ProjectGAG
from gag.project.project import Project
from gag.serving.api import make_app
from gag.serving.keys import Keys
from gag.serving.server import Server


class Served(httpx.Client):
    """A client of a server, with what is behind it."""

    server: Server

    def chat(self, question: str, **more) -> httpx.Response:
        """Ask by chat completions."""
        return self.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": question}], **more}
        )


@contextmanager
def listening(app: FastAPI, at_once: bool = False) -> Iterator[str]:
    """Run an application on a free port of the loopback until the block ends -> its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit, running.force_exit = True, at_once
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def serve(project: Project, key: str = "") -> Iterator[Served]:
    """Serve a project until the block ends."""
    settings = project.settings.serve
    keys = Keys(None if settings.keys is None else project.root / settings.keys)
    app = make_app(ProjectGAG(project), settings, keys)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with listening(app) as url:
        client = Served(base_url=url, timeout=60, headers=headers)
        client.server = app.state.server
        with client:
            yield client
    assert not client.server.owner.alive

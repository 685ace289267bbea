"""What the routes share: the engine's owner, keys, counters; and how a request finds them."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from gag.engine.engine import ProjectGAG
from gag.project.serve_settings import ServeSettings
from gag.project.settings import GENERAL
from gag.serving.errors import RequestError
from gag.serving.keys import Key, Keys
from gag.serving.metrics import Metrics
from gag.serving.owner import Owner, Ticket
from gag.serving.replies import Response, Shape
from gag.serving.requests import Request
from gag.serving.streaming import Exchange, streamed_reply, whole_reply


class Server:
    """What the routes share.

    Args:
        gag: the engine, which the server's own thread takes over.
        settings: how it is served.
        keys: who may ask.
    """

    def __init__(self, gag: ProjectGAG, settings: ServeSettings, keys: Keys):
        self.gag, self.settings, self.keys = gag, settings, keys
        self.owner = Owner(gag, settings.waiting, settings.prefill, self._wake)
        self.metrics = Metrics(settings.metrics_prefix, self.owner)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, in the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self.owner.start()

    async def answer(
        self, http: HttpRequest, key: Key, asked: Request, shape: type[Shape], usage: bool = False
    ) -> HttpResponse:
        """Answer a request of any protocol."""
        domain = self.domain(asked.model, key)
        turns = asked.gag.turns or self.settings.turns
        asks = [ask.sent(domain, key.domains, turns) for ask in asked.asks()]
        exchange = Exchange(self.owner, self.metrics, asks, http)
        prompts = self.gag.base.prompts
        made = shape(exchange.told, exchange.seconds, prompts, asked.gag.background)
        if asked.stream:
            return await streamed_reply(exchange, made, usage, named=shape is Response)
        return await whole_reply(exchange, made)

    def domain(self, model: str, key: Key) -> str | None:
        """Return the domain that a model's name asks for; None: the router says it."""
        kind, _, domain = model.partition("/")
        if kind != "gag" or (domain not in ("", GENERAL) and domain not in self.gag.domains.known):
            there = ", ".join(self.models(key))
            raise RequestError(404, f"no model {model[:80]!r}; there are {there}", "model", "model_not_found")
        if domain in ("", GENERAL):
            return domain or None
        key.allow(domain)
        return domain

    def models(self, key: Key) -> list[str]:
        """Name what a key may ask."""
        names = [name for name in self.gag.domains.names if key.domains is None or name in key.domains]
        return ["gag", f"gag/{GENERAL}", *(f"gag/{name}" for name in names)]

    async def on_engine(self, work: Callable[[], Any]) -> Any:
        """Do some work on the engine between two steps, and wait for it."""
        return await asyncio.wrap_future(self.owner.call(work))

    def _wake(self, tickets: list[Ticket]) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: [ticket.wake() for ticket in tickets])


def server_of(http: HttpRequest) -> Server:
    """Return the server that a request came to."""
    return http.app.state.server


def key_of(
    server: Annotated[Server, Depends(server_of)], authorization: Annotated[str | None, Header()] = None
) -> Key:
    """Return the key of a request; RequestError: it has none that is known."""
    return server.keys.find(authorization)


def admin_of(key: Annotated[Key, Depends(key_of)]) -> Key:
    """Return the key of a request that may change the domains."""
    if not key.admin:
        raise RequestError(
            403,
            "this needs a key that may change the domains; `gag serve --new-key NAME --admin` makes one",
            code="not_admin",
        )
    return key


Here = Annotated[Server, Depends(server_of)]
Allowed = Annotated[Key, Depends(key_of)]
Admin = Annotated[Key, Depends(admin_of)]

"""From a request to its reply: hand the questions over, follow their events, and send what they say."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.responses import StreamingResponse

from gag.engine.asking import Ask, Event, Routed
from gag.serving.errors import RequestError, refused
from gag.serving.metrics import Metrics
from gag.serving.owner import Owner, Ticket
from gag.serving.replies import Shape
from gag.serving.told import Told, headers_of

PING = 15.0  # seconds without an event after which a stream shows that it lives


class Json(HttpResponse):
    """A body of JSON; half a character, which is no text, is written as a question mark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write it."""
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


class Exchange:
    """One request's questions, from when they are handed over until all are answered, refused or given up.

    Args:
        owner: who answers.
        metrics: what counts it.
        asks: the questions.
        http: the request, which tells when its client goes; None: whoever takes the events does.
    """

    def __init__(self, owner: Owner, metrics: Metrics, asks: list[Ask], http: HttpRequest | None):
        self._owner, self._metrics, self._http = owner, metrics, http
        self._news, self._gone, self._began = asyncio.Event(), False, time.monotonic()
        self.tickets = [Ticket(ask, self._news.set) for ask in asks]
        self.told = [Told(ask) for ask in asks]

    @property
    def seconds(self) -> list[dict[str, float]]:
        """What each question took, by the parts of its way."""
        return [ticket.job.seconds for ticket in self.tickets]

    async def events(self) -> AsyncGenerator[tuple[Told, Event] | None]:
        """Yield what happens, in order; None after a while without anything.

        When it ends, by whatever cause, nothing of the questions is left with the owner.
        """
        self._owner.submit(self.tickets)
        watching = asyncio.create_task(self._watch(self._http)) if self._http else None
        try:
            while not self._gone and not all(told.over for told in self.told):
                try:
                    async with asyncio.timeout(PING):
                        await self._news.wait()
                except TimeoutError:
                    yield None
                    continue
                self._news.clear()
                for ticket, told in zip(self.tickets, self.told, strict=True):
                    for event in ticket.take():
                        told.take(event)
                        yield told, event
            for told in self.told:
                told.sources = await asyncio.to_thread(self._owner.sources, told)
        finally:
            if watching:
                watching.cancel()
            for ticket, told in zip(self.tickets, self.told, strict=True):
                if not told.over:
                    self._owner.cancel(ticket)
                self._metrics.ended(told, ticket.job.seconds, self._began)

    async def _watch(self, http: HttpRequest) -> None:
        """Wait until the client goes."""
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._news.set()


async def whole_reply(exchange: Exchange, shape: Shape) -> HttpResponse:
    """Answer in one piece."""
    async for _ in exchange.events():
        pass
    for told in exchange.told:
        if told.error:
            raise refused(told.error)
        if not told.over:  # nobody reads this any more
            return HttpResponse(status_code=499)
    return Json(shape.whole(), headers=headers_of(exchange.told[0]))


async def streamed_reply(exchange: Exchange, shape: Shape, usage: bool, named: bool) -> HttpResponse:
    """Answer piece by piece, once the first question is routed: until then a refusal has a status of its own.

    Args:
        exchange: the questions.
        shape: how pieces look.
        usage: whether the tokens are counted at the end.
        named: whether each piece has the name of its kind, as those of responses.
    """
    events = exchange.events()
    begun: list[tuple[Told, Event]] = []
    async for item in events:
        if item is None:
            continue
        begun.append(item)
        if exchange.told[0].error:
            await events.aclose()
            raise refused(exchange.told[0].error)
        if isinstance(item[1], Routed):
            break
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers_of(exchange.told[0])}
    frames = _frames(events, begun, exchange, shape, usage, named)
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)


async def _frames(
    events: AsyncGenerator[tuple[Told, Event] | None],
    begun: list[tuple[Told, Event]],
    exchange: Exchange,
    shape: Shape,
    usage: bool,
    named: bool,
) -> AsyncIterator[bytes]:
    """Write the events of a stream as server-sent events."""
    number = 0

    def written(chunk: dict[str, Any]) -> bytes:
        nonlocal number
        head = f"event: {chunk['type']}\n" if named else ""
        if named:
            chunk = {**chunk, "sequence_number": number}
            number += 1
        return f"{head}data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode("utf-8", "replace")

    def of(item: tuple[Told, Event]) -> bytes:
        told, event = item
        chunks = shape.opening(told) if isinstance(event, Routed) else shape.piece(told, event)
        return b"".join(written(chunk) for chunk in chunks)

    async with aclosing(events):  # however it ends, nothing is left with the owner
        for item in begun:
            yield of(item)
        async for item in events:
            if item is None:
                yield b": waiting\n\n"
            elif item[0].error:
                error = refused(item[0].error)
                yield written({"type": "error"} | error_body(error) if named else error_body(error))
                break
            elif piece := of(item):
                yield piece
        else:
            for chunk in shape.closing(usage):
                yield written(chunk)
    if not named:
        yield b"data: [DONE]\n\n"


def error_body(error: RequestError) -> dict[str, Any]:
    """Write a refusal as OpenAI does."""
    about = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": about}

"""Clients of an HTTP server in one process: plain sockets, so that the load costs the machine little.

`python -m benchmarks.load` reads a plan as JSON from stdin and writes what came of each request to stdout.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Sent:
    """One request, and what came of it; times are seconds since the plan began."""

    began: float = 0.0
    first: float | None = None  # of the answer's text
    ended: float | None = None
    status: int = 0
    text: str = ""
    model: str = ""
    error: str = ""
    pieces: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is sent.

    Attributes:
        port: of the server on the loopback.
        bodies: of POST requests, in order; text is sent as it is.
        clients: that send at once, each its next body when it has its answer.
        rate: requests a second at even distances, in place of clients.
        cancel: numbers of bodies whose client goes after the first piece.
        path: of the requests.
        key: that is sent.
    """

    port: int
    bodies: list[Any]
    clients: int = 1
    rate: float | None = None
    cancel: tuple[int, ...] = ()
    path: str = "/v1/chat/completions"
    key: str = ""


async def run(plan: Plan) -> list[Sent]:
    """Send all, and wait for all."""
    start, sent = time.perf_counter(), [Sent() for _ in plan.bodies]
    waiting = list(reversed(range(len(plan.bodies))))

    async def client() -> None:
        connection: Connection | None = None
        while waiting:
            number = waiting.pop()
            connection = await one(number, connection)
        if connection:
            connection.close()

    async def one(number: int, connection: "Connection | None") -> "Connection | None":
        mine = sent[number]
        mine.began = time.perf_counter() - start
        try:
            connection = connection or await connect(plan.port)
            await _exchange(connection, plan, number, mine, start)
        except (OSError, EOFError, ValueError) as error:
            mine.error = f"{type(error).__name__}: {error}"
            connection = None
        if connection and (number in plan.cancel or connection.broken):
            connection.close()
            connection = None
        return connection

    async def timed(number: int) -> None:
        await asyncio.sleep(max(0.0, number / float(plan.rate or 1) - (time.perf_counter() - start)))
        if connection := await one(number, None):
            connection.close()

    if plan.rate:
        await asyncio.gather(*(timed(number) for number in range(len(plan.bodies))))
    else:
        await asyncio.gather(*(client() for _ in range(plan.clients)))
    return sent


class Connection:
    """A connection to a server that speaks HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self._writer, self.broken = reader, writer, False

    async def send(self, plan: Plan, body: Any) -> None:
        """Send a POST request."""
        content = (
            body.encode("utf-8", "surrogateescape") if isinstance(body, str) else json.dumps(body).encode()
        )
        key = f"Authorization: Bearer {plan.key}\r\n" if plan.key else ""
        head = (
            f"POST {plan.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{key}"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        await self._writer.drain()

    async def reply(self) -> tuple[int, AsyncIterator[bytes]]:
        """Read a reply's head -> its status, and its body in pieces."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        self.broken = headers.get("connection") == "close"
        length = headers.get("content-length")
        return int(lines[0].split()[1]), self._chunks() if length is None else self._whole(int(length))

    async def _whole(self, length: int) -> AsyncIterator[bytes]:
        yield await self.reader.readexactly(length)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self.reader.readline()).strip() or b"0", 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    def close(self) -> None:
        """Go."""
        self._writer.close()


async def connect(port: int) -> Connection:
    """Connect to a server on the loopback."""
    return Connection(*await asyncio.open_connection("127.0.0.1", port))


async def _exchange(connection: Connection, plan: Plan, number: int, mine: Sent, start: float) -> None:
    await connection.send(plan, plan.bodies[number])
    mine.status, pieces = await connection.reply()
    body = b""
    async for piece in pieces:
        body += piece
        if mine.first is None and b'"content": "' in piece and b'"content": ""' not in piece:
            mine.first = time.perf_counter() - start
        if number in plan.cancel and mine.first:
            return
    mine.ended = time.perf_counter() - start
    if body.startswith(b"data: ") or body.startswith(b": "):
        _read_stream(body.decode(), mine)
    else:
        _read_whole(json.loads(body), mine)


def _read_stream(body: str, mine: Sent) -> None:
    events = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    if events[-1:] != ["[DONE]"]:
        raise ValueError("the stream has no end")
    for event in map(json.loads, events[:-1]):
        if "error" in event:
            mine.error = event["error"]["message"]
        for choice in event.get("choices", ()):
            mine.pieces.append(choice["delta"].get("content") or "")
        mine.model = event.get("model", mine.model)
    mine.text = "".join(mine.pieces)


def _read_whole(body: dict[str, Any], mine: Sent) -> None:
    if "error" in body:
        mine.error = body["error"]["message"]
        return
    mine.text, mine.model = body["choices"][0]["message"]["content"], body["model"]


def main() -> None:
    """Run the plan that stands on stdin."""
    plan = Plan(**json.load(sys.stdin))
    print(json.dumps([asdict(sent) for sent in asyncio.run(run(plan))]))


if __name__ == "__main__":
    main()

"""Continue prompts on vLLM servers: each request is a stream of its own, and the servers batch them."""

import base64
import io
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from gag.errors import GagError
from gag.models.language_model import FailedRequestError, Finish, Request, Token
from gag.models.loading import one_line
from gag.remote.replies import tokens_of
from gag.remote.server import Body
from gag.remote.servers import Servers

PATIENCE = 0.005  # seconds that a step waits for a token
TOGETHER = 256  # requests that are under way at most, where nobody says how many


@dataclass(eq=False)
class _Stream:
    """A request on its way."""

    number: int
    request: Request
    work: "Future[None] | None" = None
    said: deque[Token] = field(default_factory=deque)  # that nobody took yet
    written: list[int] = field(default_factory=list)
    failed: GagError | None = None


class RemoteGenerator:
    """Continues requests; the `Generator` over HTTP. Where a server falls silent, another one goes on.

    Args:
        servers: of the model.
        embed: token ids -> [T, D], for prompts that are embeddings.
        stops: tokens that end a text.
        rows: requests that are under way at a time, at most.
        expert: whose they are where a request does not say.
    """

    def __init__(
        self,
        servers: Servers,
        embed: Callable[[list[int]], torch.Tensor],
        stops: frozenset[int],
        rows: int | None = None,
        expert: str = "",
    ):
        self._expert = expert
        self._servers, self._embed, self._stops = servers, embed, stops
        self._rows = rows or TOGETHER
        self._waiting: deque[_Stream] = deque()
        self._under_way: dict[int, _Stream] = {}
        self._arrived, self._count = threading.Event(), 0

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Take prompts; they are sent as soon as there is room -> their numbers."""
        numbers = list(range(self._count, self._count + len(requests)))
        self._count += len(requests)
        streams = (_Stream(number, request) for number, request in zip(numbers, requests, strict=True))
        self._waiting += [stream for stream in streams if stream.request.max_new_tokens > 0]
        self._send()
        return numbers

    def drop(self, numbers: Collection[int]) -> None:
        """Forget requests; those under way are closed, and so their server stops."""
        for number in numbers:
            stream = self._under_way.pop(number, None)
            if stream and stream.work:
                stream.work.cancel()
        self._waiting = deque(stream for stream in self._waiting if stream.number not in numbers)
        self._send()

    @property
    def unfinished(self) -> int:
        """Requests that are not finished."""
        return len(self._waiting) + len(self._under_way)

    def step(self) -> list[Token]:
        """Return a token of each request that has one; without any, wait a little.

        Raises:
            FailedRequestError: no server goes on with a request, or it is refused.
        """
        self._arrived.wait(PATIENCE)
        self._arrived.clear()
        for number, stream in self._under_way.items():
            if stream.failed and not stream.said:  # before any token is taken: none is lost by that
                del self._under_way[number]
                self._arrived.set()
                self._send()
                raise FailedRequestError(number, stream.failed)
        tokens = [stream.said.popleft() for stream in self._under_way.values() if stream.said]
        for token in tokens:
            if token.finish:
                del self._under_way[token.request]
        if any(stream.said for stream in self._under_way.values()):
            self._arrived.set()
        self._send()
        return tokens

    def _send(self) -> None:
        while self._waiting and len(self._under_way) < self._rows:
            stream = self._waiting.popleft()
            self._under_way[stream.number] = stream
            servers, adapter = self._servers.of(stream.request.expert or self._expert)
            stream.work = servers.submit(self._follow(stream, servers, adapter))

    async def _follow(self, stream: _Stream, servers: Servers, adapter: str) -> None:
        """Take a request's tokens as they come, until its end."""
        try:
            await servers.follow(
                lambda: self._body(stream), lambda choice: self._take(stream, choice), adapter
            )
        except GagError as error:
            stream.failed = error
        except Exception as error:  # noqa: BLE001 - whoever asked is told, in place of waiting for ever
            stream.failed = GagError(f"the answer could not be followed: {one_line(error)}")
        self._arrived.set()

    def _take(self, stream: _Stream, choice: Body) -> None:
        ended: Finish | None = choice.get("finish_reason")
        found = tokens_of(choice, stream.request.top)
        if ended == "stop" and not found:  # the end token is not told
            found = [(min(self._stops), 0.0, None)]
        if ended and not found:
            raise ValueError("it ended without a token")
        for place, (id, chance, top) in enumerate(found):
            finish = ended if place == len(found) - 1 else None
            stream.written.append(id)
            stream.said.append(Token(stream.number, id, chance, finish, top))
        self._arrived.set()

    def _body(self, stream: _Stream) -> Body:
        """Ask for what is left of a request, behind what was written."""
        request, written = stream.request, stream.written
        body: dict[str, Any] = {
            **prompt_of(request, written, self._embed),
            "max_tokens": request.max_new_tokens - len(written),
            "logprobs": request.top,
            "stop_token_ids": sorted(self._stops),
            "stream": True,
            **sampled(request),
        }
        return body | ASKED


ASKED: Body = {  # of every request: numbers in place of texts, and nothing of a server's own defaults
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def sampled(request: Request) -> Body:
    """Say how a request's tokens are drawn; by a seed of its own, so that an answer can be had again."""
    drawn = request.sampling
    if drawn is None:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    return {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k, "seed": drawn.seed}


def prompt_of(request: Request, written: list[int], embed: Callable[[list[int]], torch.Tensor]) -> Body:
    """Write a prompt as token ids, or as embeddings."""
    ahead, prompt = list(request.prefix), request.prompt
    if isinstance(prompt, list):
        return {"prompt": [*ahead, *prompt, *written]}
    parts = [embed(ahead)] if ahead else []
    parts += [prompt.to(parts[0]) if parts else prompt] + ([embed(written).to(prompt)] if written else [])
    return {"prompt_embeds": packed(torch.cat(parts))}


def packed(embeds: torch.Tensor) -> str:
    """Pack embeddings [T, D] as vLLM reads them: a saved tensor in base64."""
    buffer = io.BytesIO()
    torch.save(embeds.detach().cpu().contiguous().clone(), buffer)  # of a view all of its storage would go
    return base64.b64encode(buffer.getvalue()).decode()

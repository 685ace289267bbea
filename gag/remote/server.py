"""One vLLM server over HTTP: what it runs, its adapters, and a completion of its."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from gag.errors import ArtifactError, DataError, SettingsError
from gag.models.loading import one_line
from gag.project.domain import KnownToken
from gag.remote.replies import known_answer, refusal

Body = dict[str, Any]
BUSY = (408, 425, 429, 502, 503, 504)  # statuses of a server that may do the same in a while
_KEY = "wants a key; name the variable that holds it under remote.key_variable"


class AwayError(Exception):
    """A server does not do now what is asked.

    Args:
        reason: what it did in its place.
        gone: it does not answer at all.
        lost: it has forgotten an adapter, and can be asked again.
    """

    def __init__(self, reason: str, gone: bool, lost: bool = False):
        super().__init__(reason)
        self.gone, self.lost = gone, lost


class Server:
    """A server, as it was met.

    Args:
        url: where it is.
        role: what its model is here: base, expert.
        client: speaks to it.

    Attributes:
        model: its model's name there.
        positions: the most tokens that it takes.
        adapters: those that it holds.
        running: requests that it works on.
        away: since when it does not answer; None: it does.
        reason: why.
    """

    def __init__(self, url: str, role: str, client: httpx.AsyncClient):
        self.url, self._role, self._client = url.rstrip("/"), role, client
        self.model, self.positions = "", None
        self.adapters: set[str] = set()
        self.running, self.reason = 0, "it was not asked yet"
        self.away: float | None = 0.0
        self._loading = asyncio.Lock()  # adapters come and go one by one

    @property
    def away_for(self) -> float:
        """Seconds for which it has not answered; 0: it does."""
        return 0.0 if self.away is None else time.monotonic() - self.away

    async def meet(self, probe: Body) -> tuple[KnownToken, ...]:
        """Ask for its model's name and its adapters, and what tells the model from another.

        Raises:
            AwayError: it does not answer.
            SettingsError: it is no vLLM server, or wants a key.
            DataError: it refuses the probe.
        """
        card = await self._get("/v1/models")
        listed = card.get("data")
        models = [one for one in listed if "id" in one] if isinstance(listed, list) else []
        own = [one for one in models if not one.get("parent")]
        if not own:
            raise SettingsError(f"{self.url} lists no model; name the URL of a vLLM server, without /v1")
        self.model, self.positions = str(own[0]["id"]), own[0].get("max_model_len")
        self.adapters = {str(one["id"]) for one in models if one.get("parent")}
        answered: list[Body] = []
        await self.post(probe | {"model": self.model}, answered.append)
        return known_answer(answered[0])

    async def have(self, adapter: str, folder: str) -> None:
        """Have an adapter there, from its folder as the server sees it.

        Raises:
            AwayError: it does not answer.
            ArtifactError: it refuses the adapter.
        """
        async with self._loading:
            if self.away is not None:  # whoever held the lock before found out
                raise AwayError(self.reason, gone=False)
            if adapter not in self.adapters:
                await self._load(adapter, folder)
                self.adapters.add(adapter)

    async def drop(self, adapter: str) -> None:
        """Take an adapter from it."""
        async with self._loading:
            if adapter in self.adapters:
                self.adapters.discard(adapter)
                await self._unload(adapter)

    async def _load(self, adapter: str, folder: str) -> None:
        body = {"lora_name": adapter, "lora_path": folder}
        try:
            reply = await self._client.post(f"{self.url}/v1/load_lora_adapter", json=body)
        except httpx.TransportError as error:
            raise AwayError(_told(error), gone=True) from error
        if reply.status_code in BUSY:
            raise AwayError(f"HTTP {reply.status_code}: {refusal(reply.content)}", gone=False)
        if reply.status_code == 200 or (reply.status_code == 400 and "already" in reply.text):
            return
        cure = "see that it reads that folder (remote.project), and its --max-lora-rank"
        if reply.status_code == 404 and "lora" not in reply.text.lower():
            cure = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        raise ArtifactError(
            f"{self.url} does not load the adapter {adapter} from {folder}: {refusal(reply.content)}; {cure}"
        )

    async def _unload(self, adapter: str) -> None:
        try:
            await self._client.post(f"{self.url}/v1/unload_lora_adapter", json={"lora_name": adapter})
        except httpx.TransportError as error:
            raise AwayError(_told(error), gone=True) from error

    async def _get(self, path: str) -> Body:
        try:
            reply = await self._client.get(self.url + path)
            reply.raise_for_status()
            found = reply.json()
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (401, 403):
                raise SettingsError(f"{self.url} {_KEY}") from error
            raise AwayError(f"HTTP {error.response.status_code} at {path}", gone=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise AwayError(_told(error), gone=True) from error
        return found if isinstance(found, dict) else {}

    async def post(self, body: Body, take: Callable[[Body], None]) -> None:
        """Send one request, and take its choice, or the pieces of it to the one that says how it ended.

        Raises:
            AwayError: it does not answer, answers what is no completion, or its answer breaks off.
            DataError: it refuses the prompt.
        """
        ended = False
        try:
            async with self._client.stream("POST", f"{self.url}/v1/completions", json=body) as reply:
                if reply.status_code != 200:
                    self._refused(reply.status_code, await reply.aread(), body)
                if not body.get("stream"):
                    _taken(await reply.aread(), take)
                    return
                async for line in _lines(reply):  # to the very end, so that the connection serves again
                    if line.startswith(b"data: {") and not ended:
                        ended = _taken(line[6:], take)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if not ended:
                raise AwayError(_told(error), gone=True) from error
        if not ended:
            raise AwayError("its answer broke off", gone=True)

    def _refused(self, status: int, content: bytes, body: Body) -> None:
        """Raise what a status other than 200 means."""
        reason = refusal(content)
        if status in (401, 403):
            raise SettingsError(f"{self.url} {_KEY}")
        if status == 404 and body["model"] != self.model:
            self.adapters.discard(body["model"])  # it was started anew
            raise AwayError(reason, gone=False, lost=True)
        if status >= 500 or status in (404, *BUSY):
            raise AwayError(f"HTTP {status}: {reason}", gone=status == 404)
        raise DataError(f"the {self._role}'s server refuses the prompt: {reason}")


async def _lines(reply: httpx.Response) -> AsyncIterator[bytes]:
    """Cut a stream at line feeds alone: a text may hold other characters that end a line."""
    rest = b""
    async for piece in reply.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest


def _taken(content: bytes, take: Callable[[Body], None]) -> bool:
    """Take a choice, or a piece of one -> whether it is the last."""
    try:
        found = json.loads(content)
        if "error" in found:
            raise AwayError(refusal(content), gone=False)
        if not found["choices"]:  # how many tokens there were
            return False
        choice = dict(found["choices"][0])
        if choice.get("finish_reason") not in (None, "stop", "length"):
            raise AwayError(f"it ended with {choice['finish_reason']}", gone=True)
        take(choice | {name: found[name] for name in ("kv_transfer_params",) if found.get(name)})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise AwayError("it answers what is no completion", gone=True) from error
    return bool(choice.get("finish_reason"))


def _told(error: Exception) -> str:
    """Say what a connection did; what a header held is not repeated."""
    if isinstance(error, httpx.LocalProtocolError):
        return "the request could not be written (is its key one line?)"
    return one_line(error) or type(error).__name__

"""The replicas of one model: the idlest is asked, and where one fails, another goes on."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from gag.errors import BusyError, GagError, MismatchError, SettingsError
from gag.project.domain import KnownToken, same_answer
from gag.project.progress import say
from gag.remote.server import AwayError, Body, Server

T = TypeVar("T")
CONNECT = 5.0  # seconds
AGAIN = 2.0  # seconds, after which a server that was away is tried again


class Servers:
    """The servers of one model; any thread may call its methods.

    Args:
        role: what the model is here: base, expert, expert of a domain.
        urls: where they are.
        probe: a request that tells the model from another one.
        key: of their API.
        timeout: seconds without a token, after which a server counts as away.

    Raises:
        SettingsError: no server is named, or none answers.
        MismatchError: they run different models.
    """

    def __init__(self, role: str, urls: tuple[str, ...], probe: Body, key: str | None, timeout: float):
        if not urls:
            raise SettingsError(
                f"engine: remote needs servers of the {role}; name them under remote in gag.yaml"
            )
        self.role, self._probe = role, probe
        self.known: tuple[KnownToken, ...] = ()
        self._adapters: dict[str, str] = {}  # that should be there, and their folders
        self._own: dict[str, Servers] = {}  # of experts whose weights are not an adapter's
        self._looking: set[asyncio.Task[None]] = set()  # for those that are away
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(self._loop,), name=f"gag-{role}", daemon=True)
        thread.start()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=CONNECT, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,  # the servers are named; no proxy of the environment stands before them
        )
        self._servers = [Server(url, role, self._client) for url in urls]
        weakref.finalize(self, _close, self._client, self._loop, thread)
        self.wait(self._open())

    @property
    def positions(self) -> int | None:
        """The most tokens that all of the servers take."""
        told = [s.positions for s in (*self._servers, *self._own.values())]
        return min((positions for positions in told if positions), default=None)

    def of(self, expert: str) -> "tuple[Servers, str]":
        """Return who is asked for an expert, and which of their adapters it is; none: the model itself."""
        return (self._own[expert], "") if expert in self._own else (self, expert)

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin some work in the thread that speaks to the servers."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work there, and wait for it."""
        return self.submit(work).result()

    def complete(self, bodies: list[Body], adapter: str = "") -> list[Body]:
        """Send requests together -> each one's choice, in their order."""
        servers, adapter = self.of(adapter)

        async def one(body: Body) -> Body:
            found: list[Body] = []
            await servers.follow(lambda: body, found.append, adapter)
            return found[0]

        async def all_of_them() -> list[Body]:
            return await asyncio.gather(*(one(body) for body in bodies))

        return servers.wait(all_of_them())

    async def follow(self, body: Callable[[], Body], take: Callable[[Body], None], adapter: str = "") -> None:
        """Send a request, and take its choice, piece by piece where `body` streams.

        Args:
            body: makes the request; made anew for another server, so that it can go on where one fell silent.
            take: takes each piece.
            adapter: whose expert is asked; none: the model itself.

        Raises:
            BusyError: no server answers.
            DataError: the request is refused.
        """
        tried: list[Server] = []
        again: Server | None = None
        while True:
            server, again = again or await self._idlest(tried), None
            tried.append(server)
            server.running += 1
            try:
                if adapter:
                    await server.have(adapter, self._adapters.get(adapter, ""))
                await server.post(body() | {"model": adapter or server.model}, take)
                return
            except AwayError as error:
                self._note(server, error)
                if error.lost and tried.count(server) == 1:
                    again = server
            finally:
                server.running -= 1

    def load(self, adapter: str, folder: str) -> None:
        """Have an adapter at all servers that answer; one that comes later gets it when it is asked.

        Raises:
            ArtifactError: a server refuses it.
            BusyError: none answers.
        """
        self._adapters[adapter] = folder

        async def at(server: Server) -> bool:
            try:
                await server.have(adapter, folder)
            except AwayError as error:
                self._note(server, error)
                return False
            return True

        async def everywhere() -> bool:
            await self._idlest([])  # those that are away are looked for
            here = [server for server in self._servers if server.away is None]
            return any(await asyncio.gather(*(at(server) for server in here)))

        if not self.wait(everywhere()):
            raise self._nobody()

    def stand_in(self, expert: str, servers: "Servers") -> None:
        """Have an expert asked at servers of its own."""
        self._own[expert] = servers

    def unload(self, adapter: str) -> None:
        """Take an adapter from all servers, or leave an expert's own alone."""
        self._adapters.pop(adapter, None)
        if self._own.pop(adapter, None):
            return

        async def everywhere() -> None:
            for server in self._servers:
                try:
                    await server.drop(adapter)
                except AwayError as error:
                    self._note(server, error)

        self.submit(everywhere())  # nobody waits for it

    async def _open(self) -> None:
        """Meet all servers; those that do not answer yet are met when they do."""
        for server in self._servers:
            try:
                await self._meet(server)
            except AwayError as error:
                server.reason = str(error)
        if all(server.away is not None for server in self._servers):
            raise SettingsError(f"no server of the {self.role} answers: {self._reasons()}; start one")
        for server in self._servers:
            if server.away is not None:
                say(f"the {self.role}'s server {server.url} is away ({server.reason}); the others go on")

    async def _meet(self, server: Server) -> None:
        """Meet a server, and see whether it is the others' model."""
        known = await server.meet(self._probe)
        if self.known and not same_answer(self.known, known):
            raise MismatchError(f"{server.url} runs another model than the {self.role}'s other servers")
        self.known, server.away = self.known or known, None

    async def _idlest(self, tried: list[Server]) -> Server:
        """Choose a server that was not tried; those that are away are looked for beside that."""
        left = [server for server in self._servers if server not in tried]
        for server in left:
            if server.away_for > AGAIN:
                server.away = time.monotonic()  # nobody else looks for it meanwhile
                task = asyncio.create_task(self._look_for(server))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)
        here = [server for server in left if server.away is None]
        while not here and self._looking:
            await asyncio.wait(set(self._looking), return_when=asyncio.FIRST_COMPLETED)
            here = [server for server in left if server.away is None]
            await asyncio.sleep(0)  # those that are done leave the set
        if not here:
            raise self._nobody()
        return min(here, key=lambda server: server.running)

    async def _look_for(self, server: Server) -> None:
        """See whether a server that was away is back."""
        try:
            await self._meet(server)
        except AwayError as error:
            self._note(server, error)
        except GagError as error:  # another model runs there now
            self._note(server, AwayError(str(error), gone=True))
        else:
            say(f"the {self.role}'s server {server.url} is back")

    def _nobody(self) -> BusyError:
        why = ", ".join(sorted({server.reason for server in self._servers}))  # no addresses: clients are told
        return BusyError(f"no server of the {self.role} answers ({why}); ask again soon", 5)

    def _note(self, server: Server, error: AwayError) -> None:
        server.reason = str(error)
        if error.gone:
            if server.away is None:
                say(f"the {self.role}'s server {server.url} is away: {server.reason}")
            server.away = time.monotonic()

    def _reasons(self) -> str:
        return ", ".join(f"{server.url} ({server.reason})" for server in self._servers)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close the connections, and end the thread."""

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.aclose()
        await loop.shutdown_asyncgens()
        loop.call_soon(loop.stop)

    asyncio.run_coroutine_threadsafe(end(), loop)
    if threading.current_thread() is not thread:
        thread.join(CONNECT)

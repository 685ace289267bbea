"""The one thread that owns the models: it takes questions from others, steps, and hands their events back."""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from gag.engine.answering import Answering
from gag.engine.asking import Ask, Event, Job
from gag.engine.engine import ProjectGAG
from gag.engine.sources import Source
from gag.errors import ArtifactError, BusyError, GagError, RoutingError
from gag.models.loading import one_line
from gag.project.progress import say
from gag.serving.told import Told

T = TypeVar("T")
LOOK = 1.0  # seconds between two looks at the domains' folder
SWITCH = 0.0005  # seconds that HTTP may keep the interpreter while a step waits for it
BEHIND = 1024  # events that a client may leave unread; one that leaves more is dropped


class Ticket:
    """A question that was handed over. Its events are collected until somebody takes them.

    Args:
        ask: the question.
        wake: tells whoever takes the events that there are some; the owner's `woken` calls it.
    """

    def __init__(self, ask: Ask, wake: Callable[[], None]):
        self.job = Job(ask, self._tell)
        self.wake, self.cancelled = wake, False
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def take(self) -> list[Event]:
        """Take the events since the last time."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _tell(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)

    @property
    def unread(self) -> int:
        """Events that nobody took yet."""
        return len(self._events)


class Owner:
    """Runs an engine in a thread of its own; any thread may call its methods.

    Args:
        gag: the engine; from now on nobody else touches it.
        waiting: questions that wait or are answered, at most.
        prefill: prompt tokens that join in one step, at most.
        woken: called after each step in the owner's thread, with the tickets that have events.
    """

    def __init__(
        self,
        gag: ProjectGAG,
        waiting: int,
        prefill: int,
        woken: Callable[[list[Ticket]], None],
    ):
        self.gag, self._waiting, self._woken = gag, waiting, woken
        self.answering, self._prefill = Answering(gag, prefill), prefill
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[Job, Ticket] = {}
        self._open = 0  # tickets that were handed over and are not ended
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._stopping, self._ended = threading.Event(), False
        self._looked = threading.Event()  # set: look at the folder now
        self.fault = ""  # of the last look at the folder
        self._thread = threading.Thread(target=self._run, name="gag-owner", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="gag-watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._watcher.start()

    @property
    def alive(self) -> bool:
        """Whether it steps."""
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """Whether it takes no more questions."""
        return self._stopping.is_set()

    @property
    def load(self) -> tuple[int, int]:
        """Questions that are on their way, and those that wait."""
        return self.answering.running, max(0, self._open - self.answering.running)

    def submit(self, tickets: list[Ticket]) -> None:
        """Hand questions over.

        Raises:
            BusyError: too many wait, or it is stopping.
        """
        with self._lock:
            if self._stopping.is_set() or not self.alive:
                raise BusyError("the server is stopping; ask another one, or again in a while", 5)
            if self._open + len(tickets) > self._waiting:
                raise BusyError(f"{self._open} questions are waiting or being answered; ask again soon", 1)
            self._open += len(tickets)
        for ticket in tickets:
            self._inbox.put(lambda ticket=ticket: self._add(ticket))

    def cancel(self, ticket: Ticket) -> None:
        """Forget a question; its place is free in the next step."""
        ticket.cancelled = True
        self._inbox.put(lambda: self._drop(ticket))

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Do some work on the engine between two steps."""
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return  # whoever asked for it has gone
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)

        self._inbox.put(do)
        return future

    def sources(self, told: Told) -> list[Source]:
        """Find what an answer may rest on; none where its domain went meanwhile. The caller waits for it."""
        if told.error or not told.route:
            return []
        try:
            return self.gag.sources(told.route.domain, told.asked, told.background, told.texts[0])
        except (ArtifactError, RoutingError):
            return []

    def look(self) -> None:
        """Look at the domains' folder now, and take up what is there; the caller waits for it.

        Raises:
            GagError: the router cannot be made.
        """
        with self._looking:
            take = self.gag.look()
            if take:
                self.call(take).result()

    def stop(self, seconds: float) -> bool:
        """Take no more questions, finish those that were taken, within some time -> whether all are done."""
        with self._lock:
            self._stopping.set()
        ends = time.monotonic() + seconds
        while self._open and self.alive and time.monotonic() < ends:
            time.sleep(0.02)
        done = not self._open
        self._inbox.put(self._end)
        self._looked.set()
        self._thread.join(5)
        return done

    def _end(self) -> None:
        self._ended = True

    def _run(self) -> None:
        sys.setswitchinterval(SWITCH)
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # one is for HTTP
        while not self._ended:
            self._take_in(wait=not self.answering.busy)
            if self.answering.busy:
                try:
                    self.answering.step()
                except Exception as error:  # noqa: BLE001 - one question's fault is not to end all others'
                    traceback.print_exc()
                    self._begin_again(error)
                self._hand_out()

    def _begin_again(self, error: Exception) -> None:
        """Refuse all that were on their way after a fault of the engine's own, and go on without them."""
        for ticket in self._tickets.values():
            ticket.job.refuse(GagError(f"the engine failed ({one_line(error)}); ask again"))
        self.answering = Answering(self.gag, self._prefill)

    def _take_in(self, wait: bool) -> None:
        """Do what others asked for; without anything to step, wait for that."""
        try:
            while True:
                self._inbox.get(block=wait)()
                wait = False
        except queue.Empty:
            return

    def _hand_out(self) -> None:
        told = [ticket for ticket in self._tickets.values() if ticket.unread]
        ended = [ticket for ticket in self._tickets.values() if not ticket.job.left]  # read to the end or not
        for ticket in told:
            if ticket.unread > BEHIND and ticket.job.left:
                self._drop(ticket)
                ticket.job.refuse(GagError("the answer was not read for too long"))
        for ticket in ended:
            self._forget(ticket)
        if told:
            self._woken(told)

    def _add(self, ticket: Ticket) -> None:
        self._tickets[ticket.job] = ticket
        if ticket.cancelled:
            self._forget(ticket)
            return
        self.answering.add(ticket.job)

    def _drop(self, ticket: Ticket) -> None:
        if ticket.job in self._tickets:
            self.answering.drop(ticket.job)
            self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.job, None):
            with self._lock:
                self._open -= 1

    def _watch(self) -> None:
        """Follow the folder, until it stops."""
        while not self._looked.wait(LOOK):
            try:
                self.look()
                self.fault = ""
            except (GagError, OSError) as error:  # the engine goes on as it was
                if self.fault != (fault := one_line(error)):
                    say(f"the domains' folder cannot be followed, all goes on as it was: {fault}")
                self.fault = fault

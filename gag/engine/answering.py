"""The loop that answers: route, read, inject, answer, for many questions and domains at once.

Each step moves every question on by one token at most, wherever it stands: those of one expert are written
together, and the answers to all, general and of any domain, are one batch of the base. What begins, at the
router, an expert or the base, begins together with others, every few steps: one pass for several prompts.
While experts write, the base says a token in those steps alone: whoever waits for a first one waits less.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from textwrap import shorten

from gag.engine.answer import Knowledge
from gag.engine.asking import Background, Ended, Job, Read, Routed, Said, refusing
from gag.engine.parts import Parts
from gag.engine.pool import Module
from gag.engine.tasks import Tasks
from gag.engine.writing import Text, Writer
from gag.errors import GagError
from gag.models.language_model import FailedRequestError, Request, Token, check_room
from gag.models.prompts import KnowledgePrompt
from gag.models.sampling import seeded
from gag.models.text_stream import TextStream
from gag.project.settings import GENERAL
from gag.projection.injection import inject
from gag.routing.router import Route
from gag.routing.turns import restricted, route_turns

KEPT = 1024  # questions whose knowledge is kept
EVERY = 5  # steps: in each of so many, questions move from one part of their way to the next, together
AHEAD = 2  # questions beyond the router, in multiples of the rows that the base answers together


@dataclass
class _Saying:
    """One answer of a job, as the base writes it."""

    job: Job
    choice: int
    text: TextStream
    tokens: int = 0


class Answering:
    """Questions on their way. One thread owns it, as it owns the models.

    Args:
        parts: what answers.
        prefill: prompt tokens that join the base's batch in one step, at most; None: any number.
        in_phases: answers begin when the experts' texts are whole, and others are routed when all have
            ended: for many questions of which no single one is waited for.
    """

    def __init__(self, parts: Parts, prefill: int | None = None, in_phases: bool = False):
        self._parts, self._in_phases = parts, in_phases
        self._base = parts.base.generator(rows=parts.decoding.batch_size, prefill=prefill)
        self._fresh: deque[Job] = deque()
        self._jobs: set[Job] = set()  # beyond the router
        self._writers: dict[str, Writer] = {}  # by the expert's name; those that run together under none
        self._saying: dict[int, _Saying] = {}
        self._tasks = Tasks(parts.elsewhere)
        self._kept: OrderedDict[tuple[str, str, int], Knowledge] = OrderedDict()
        self._prefixes: dict[tuple[str, ...], tuple[int, ...]] = {}  # of the base's prompts, by their words
        self._steps = 0
        self.hits = self.misses = 0  # of the kept knowledge

    @property
    def busy(self) -> bool:
        """Whether there is anything to step."""
        return bool(self._fresh or self._jobs)

    @property
    def waiting(self) -> int:
        """Questions that are not routed yet."""
        return len(self._fresh)

    @property
    def running(self) -> int:
        """Questions that are on their way beyond the router."""
        return len(self._jobs)

    @property
    def saying(self) -> int:
        """Answers that the base writes, or that wait for a place among its rows."""
        return len(self._saying)

    def add(self, job: Job) -> None:
        """Take a question."""
        job.begin("wait")
        self._fresh.append(job)

    def drop(self, job: Job) -> None:
        """Forget a question, wherever it stands; its place is free in the next step."""
        self._jobs.discard(job)
        if job in self._fresh:
            self._fresh.remove(job)
        for writer in self._writers.values():
            writer.drop(job)
        gone = [number for number, saying in self._saying.items() if saying.job is job]
        self._base.drop(gone)
        for number in gone:
            del self._saying[number]

    def step(self) -> None:
        """Move every question on by one token at most."""
        self._steps += 1
        under_way = bool(self._saying) or any(writer.count for writer in self._writers.values())
        moving = not under_way or self._steps % EVERY == 0
        self._tasks.collect(idle=not under_way)
        if moving:
            self._route()
        for writer in list(self._writers.values()):
            writer.step()
            if writer.whole and (moving or not (writer.count or self._saying)):
                for texts in writer.take():
                    self._read(texts)
        writing = any(writer.count or writer.whole for writer in self._writers.values())
        if self._saying and not (writing and (self._in_phases or not (moving or self._parts.elsewhere))):
            self._say()
        self._jobs = {job for job in self._jobs if job.left}
        in_use = {expert for writer in self._writers.values() for expert in writer.in_use}
        for expert in self._parts.domains.release(in_use | self._tasks.in_use):
            self._writers.pop(expert, None)

    def _route(self) -> None:
        """Send fresh questions on their ways, as many as there is room for."""
        size = self._parts.decoding.batch_size
        room = (0 if self._jobs else size) if self._in_phases else AHEAD * size - len(self._jobs)
        jobs = [self._fresh.popleft() for _ in range(min(room, len(self._fresh)))]
        for job in jobs:
            job.begin("route", ends="wait")
        self._jobs.update(jobs)
        free, router = [job for job in jobs if job.ask.domain is None], self._parts.router
        turns = [job.ask.questions[-job.ask.turns_routed :] for job in free]

        def sent(found: list[tuple[Route, str]]) -> None:
            routes = dict(zip(free, found, strict=True))
            for job in self._still(jobs):
                job.begin("read", ends="route")
                with refusing(job):
                    self._send(job, *(routes.get(job) or _forced(job)))

        if jobs:
            self._tasks.do(lambda: route_turns(router, turns), sent, lambda error: self._refuse(jobs, error))

    def _send(self, job: Job, route: Route, asked: str) -> None:
        """Have the expert write, unless its knowledge of this question is at hand, or none is needed."""
        route = restricted(route, job.ask.allowed)
        module = None if route.domain == GENERAL else self._parts.domains.module(route.domain)
        job.tell(Routed(route, asked, module.readout.slots if module else 0))
        if module is None:
            ids = self._parts.base.prompts.chat(job.ask.turns)
            self._answer(job, asked, None, Request(ids, 0), len(ids))
            return
        longest = module.readout.max_new_tokens
        budget = longest if job.ask.readout_tokens is None else min(longest, job.ask.readout_tokens)
        known = self._kept.get((module.expert, asked, budget))
        if known:
            self.hits += 1
            self._kept.move_to_end((module.expert, asked, budget))
            job.tell(Background(known.text))
            self._inject(job, asked, known, module)
            return
        self.misses += 1
        together = "" if self._parts.experts.mixed(module.expert) else module.expert
        if together not in self._writers:
            self._writers[together] = Writer(self._parts.experts, module)
        self._writers[together].add(job, route.domain, module, asked, budget)

    def _read(self, texts: list[Text]) -> None:
        """Read one expert on texts that are whole, and have the base answer around what it knows."""
        module, found = texts[0].module, [text.likely for text in texts]
        likely = [one for one in found if one]
        likely = likely if len(likely) == len(found) else None
        questions, ids = [text.asked for text in texts], [text.ids for text in texts]

        def injected(known: list[Knowledge]) -> None:
            for text, knowledge in zip(texts, known, strict=True):
                self._keep((module.expert, text.asked, text.budget), knowledge)
                if text.job in self._jobs:
                    with refusing(text.job):
                        self._inject(text.job, text.asked, knowledge, module)

        self._tasks.do(
            lambda: self._parts.read(questions, texts[0].domain, module, ids, likely),
            injected,
            lambda error: self._refuse([text.job for text in texts], error),
            module.expert,
        )

    def _refuse(self, jobs: list[Job], error: GagError) -> None:
        for job in self._still(jobs):
            job.refuse(error)

    def _still(self, jobs: list[Job]) -> list[Job]:
        """Return those that nobody dropped."""
        return [job for job in jobs if job in self._jobs]

    def _keep(self, name: tuple[str, str, int], knowledge: Knowledge) -> None:
        self._kept[name] = knowledge
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _inject(self, job: Job, asked: str, knowledge: Knowledge, module: Module) -> None:
        """Put the knowledge into the prompt; what all prompts of a domain begin with is run once."""
        base, around = self._parts.base, module.prompts.around()
        if around not in self._prefixes:
            self._prefixes[around] = base.prompts.shared(
                lambda question: base.prompts.with_knowledge(question, module.prompts).before
            )
        words, prefix = base.prompts.with_knowledge(asked, module.prompts, job.ask.system), ()
        cut = len(self._prefixes[around])
        if tuple(words.before[:cut]) == self._prefixes[around]:
            words, prefix = KnowledgePrompt(words.before[cut:], words.after), self._prefixes[around]
        prompt = inject(base, words, knowledge.vectors)
        self._answer(job, asked, knowledge, Request(prompt, 0, prefix=prefix), len(prefix) + len(prompt))

    def _answer(self, job: Job, asked: str, known: Knowledge | None, request: Request, length: int) -> None:
        """Have the base continue a prompt of some tokens, once for each answer that is asked for."""
        ask = job.ask
        budget = ask.max_new_tokens or self._parts.decoding.max_new_tokens
        check_room(self._parts.base, length + budget, f"the question {shorten(asked, 60)!r}")
        job.begin("answer", ends="read")
        job.tell(Read(known, length))
        requests = [
            replace(
                request,
                max_new_tokens=budget,
                sampling=seeded(asked, ask.seed + i, budget, ask.temperature, ask.top_p, ask.top_k),
                top=ask.top or 0,
            )
            for i in range(ask.count)
        ]
        for choice, number in enumerate(self._base.add(requests)):
            self._saying[number] = _Saying(job, choice, TextStream(self._parts.base.prompts, ask.stop))

    def _say(self) -> None:
        """Have the base say a token of each answer."""
        try:
            tokens = self._base.step()
        except FailedRequestError as failed:
            job = self._saying[failed.request].job
            self.drop(job)
            job.refuse(failed.error)
            return
        for token in tokens:
            saying = self._saying[token.request]
            new, end = "", token.finish
            if token.finish != "stop":
                saying.tokens += 1
                new = saying.text.add(token.id)
            if saying.text.stopped and not end:
                self._base.drop([token.request])
                end = "stop"
            new += saying.text.end() if end else ""
            self._tell(saying, new, token)
            if end:
                del self._saying[token.request]
                job = saying.job
                job.left -= 1
                if not job.left:
                    job.end("answer")
                job.tell(Ended(saying.choice, "stop" if saying.text.stopped else end, saying.tokens))

    def _tell(self, saying: _Saying, text: str, token: Token) -> None:
        wanted = (token,) if saying.job.ask.top is not None and token.finish != "stop" else ()
        if text or wanted:
            saying.job.tell(Said(saying.choice, text, wanted))


def _forced(job: Job) -> tuple[Route, str]:
    return Route(str(job.ask.domain), 1.0, "asked for"), job.ask.questions[-1]

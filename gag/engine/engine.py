"""GAG: route a question, read the expert, project, inject, and let the frozen base answer."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Protocol, overload

import torch

from gag.engine.answer import Answer, Knowledge
from gag.engine.pool import DomainPool, Module
from gag.errors import DataError, GagError, RoutingError
from gag.models.backbone import Backbone
from gag.models.experts import Experts, ExpertSource
from gag.models.language_model import Generation, LanguageModel, Request, check_room, generate
from gag.models.loading import load_backbone
from gag.project.project import Project, load_project
from gag.project.rows import check_text
from gag.project.settings import GENERAL, DecodingSettings
from gag.projection.injection import inject
from gag.readout.states import read
from gag.readout.vocabulary import BaseVocabulary
from gag.routing.router import Route, Router
from gag.routing.state import open_router, project_encoder


class Domains(Protocol):
    """What the engine asks of the domains; `DomainPool` follows a project's folder."""

    @property
    def names(self) -> list[str]:
        """The domains that can be asked."""
        ...

    def refresh(self) -> bool:
        """Look again which domains there are; say whether anything changed."""
        ...

    def module(self, name: str) -> Module:
        """Return a domain's module."""
        ...


class Routes(Protocol):
    """What the engine asks of a router."""

    def route(self, questions: Sequence[str]) -> list[Route]:
        """Route a batch of questions."""
        ...


class GAG:
    """A frozen base, experts, a router and domains that answer together. One thread owns it.

    `GAG.open(folder)` makes the parts of a project; any of them can be another that keeps its protocol.

    Args:
        base: answers; not one of its weights is ever changed.
        experts: hold the domains' knowledge.
        router: sends each question to a domain or to general.
        domains: the modules, by name.
        decoding: how long answers may be, and how many questions are answered together.

    Example:
        >>> gag = GAG.open("~/my-project")
        >>> gag.ask("Which support keeps platinum dispersed?").text
        >>> [answer.route.domain for answer in gag.ask(["What is 2 plus 2?", "What is ceria?"])]
    """

    def __init__(
        self,
        base: LanguageModel,
        experts: ExpertSource,
        router: Routes,
        domains: Domains,
        decoding: DecodingSettings | None = None,
    ):
        self.base, self.experts, self.router, self.domains = base, experts, router, domains
        self.decoding = decoding or DecodingSettings()

    @classmethod
    def open(cls, project: str | Path | Project) -> "ProjectGAG":
        """Open a project: load base and expert backbone, and follow its domains.

        Args:
            project: the project's folder (`~` is the home), or a `Project`.

        Raises:
            SettingsError: no project there, a wrong setting, or a model that cannot be loaded.
            ArtifactError: the general bank is missing or harmed. A domain that fails is refused by name
                instead.

        Example:
            >>> gag = GAG.open("~/my-project")
        """
        return ProjectGAG(project if isinstance(project, Project) else load_project(project))

    def route(self, questions: Sequence[str]) -> list[Route]:
        """Say where each question would go.

        Raises:
            DataError: a question is empty or no text.
        """
        self._follow()
        return self.router.route(_checked(questions))

    @overload
    def ask(self, questions: str, domain: str | None = None) -> Answer: ...

    @overload
    def ask(self, questions: list[str] | tuple[str, ...], domain: str | None = None) -> list[Answer]: ...

    def ask(
        self, questions: str | list[str] | tuple[str, ...], domain: str | None = None
    ) -> Answer | list[Answer]:
        """Answer a question, or several in batches that may mix general and any domains.

        Args:
            questions: one text, or several.
            domain: skips the router: a domain, or `general`.

        Returns: An `Answer` for a text, a list in the order of the questions for several. Of several, one
            whose domain cannot be read is an answer with `finish` "refused", and the others are answered.

        Raises:
            DataError: a question is empty or no text.
            RoutingError: no such domain, or the domain of a single question cannot be read.
            ArtifactError: the domain that was asked for is refused.

        Example:
            >>> gag.ask("What is ceria?", domain="materials").text
        """
        if isinstance(questions, str):
            answer = self.ask([questions], domain)[0]
            if answer.finish == "refused":
                raise RoutingError(answer.refusal)
            return answer
        questions, size = _checked(questions), self.decoding.batch_size
        self._follow()
        if domain not in (None, GENERAL):
            self.domains.module(domain)  # one that is not here, or refused, is said at once
        starts = range(0, len(questions), size)
        return [answer for start in starts for answer in self._ask(questions[start : start + size], domain)]

    def read(self, questions: Sequence[str], domain: str, module: Module | None = None) -> list[Knowledge]:
        """Read a domain's expert on questions and project what it knows.

        Args:
            questions: the questions.
            domain: whose expert is read.
            module: another readout and projector of the same expert (default: the domain's own).
        """
        own = self.domains.module(domain)
        if not questions:
            return []
        chosen = module or own
        words = BaseVocabulary(self.base.embeddings, self.base.prompts)
        asked, system = list(questions), chosen.prompts.expert
        readout = read(self.experts, domain, asked, system, chosen.readout, words, common=chosen.common)
        with torch.no_grad():
            device = next(chosen.projector.parameters()).device
            vectors = chosen.projector(readout.slots.to(device))  # [B, S, Db]
        rows = zip(vectors, readout.texts, readout.words, strict=True)
        return [Knowledge(*row) for row in rows]

    def prompt(self, question: str, domain: str, knowledge: Knowledge | None) -> torch.Tensor:
        """Build the base's input for one question: plain, or around its knowledge vectors -> [T, Db]."""
        if knowledge is None:
            return self.base.embed(self.base.prompts.plain(question))
        instruction = self.domains.module(domain).prompts.answer
        return inject(self.base, self.base.prompts.with_knowledge(question, instruction), knowledge.vectors)

    def generate(self, prompts: Sequence[torch.Tensor], new: int | None = None) -> list[Generation]:
        """Let the base continue prompts, each [T, Db], by `decoding.max_new_tokens` at most, or by `new`."""
        budget = new or self.decoding.max_new_tokens
        return generate(self.base, [Request(prompt, budget) for prompt in prompts])

    def _follow(self) -> None:
        self.domains.refresh()

    def _ask(self, questions: list[str], domain: str | None) -> list[Answer]:
        seconds: dict[str, float] = {}
        with _clock(seconds, "route"):
            routes = self.router.route(questions) if domain is None else [_forced(domain)] * len(questions)
        with _clock(seconds, "read"):
            knowledge, refusals = self._read_all(questions, routes)
        with _clock(seconds, "answer"):
            asked = [i for i in range(len(questions)) if i not in refusals]
            prompts = {i: self.prompt(questions[i], routes[i].domain, knowledge.get(i)) for i in asked}
            refusals |= self._too_long(questions, prompts)
            prompts = {i: prompt for i, prompt in prompts.items() if i not in refusals}
            written = (
                dict(zip(prompts, self.generate(list(prompts.values())), strict=True)) if prompts else {}
            )
        answers = []
        for i, (question, route) in enumerate(zip(questions, routes, strict=True)):
            if i in refusals:
                answers.append(Answer(question, "", route, "refused", 0, 0, None, seconds, refusals[i]))
                continue
            text = self.base.prompts.decode(written[i].ids)
            counts = len(prompts[i]), len(written[i].ids)
            answers.append(
                Answer(question, text, route, written[i].finish, *counts, knowledge.get(i), seconds)
            )
        return answers

    def _too_long(self, questions: list[str], prompts: dict[int, torch.Tensor]) -> dict[int, str]:
        """Refuse prompts that are longer than the base's positions, by the question's place."""
        refusals = {}
        for i, prompt in prompts.items():
            what = f"the question {shorten(questions[i], 60)!r}"
            try:
                check_room(self.base, len(prompt) + self.decoding.max_new_tokens, what)
            except DataError as error:
                refusals[i] = str(error)
        return refusals

    def _read_all(
        self, questions: list[str], routes: list[Route]
    ) -> tuple[dict[int, Knowledge], dict[int, str]]:
        """Read each domain's expert once -> knowledge, and refusals, by the question's place."""
        knowledge: dict[int, Knowledge] = {}
        refusals: dict[int, str] = {}
        for domain in sorted({route.domain for route in routes} - {GENERAL}):
            chosen = [i for i, route in enumerate(routes) if route.domain == domain]
            try:
                knowledge |= zip(chosen, self.read([questions[i] for i in chosen], domain), strict=True)
            except DataError:  # of one question: the others are read without it
                for i in chosen:
                    try:
                        knowledge[i] = self.read([questions[i]], domain)[0]
                    except DataError as error:
                        refusals[i] = str(error)
            except GagError as error:
                refusals |= dict.fromkeys(chosen, str(error))
        return knowledge, refusals


class ProjectGAG(GAG):
    """The engine over a project's folder; it follows the folder while it runs."""

    base: Backbone
    experts: Experts
    router: Router
    domains: DomainPool

    def __init__(self, project: Project):
        self.project = project
        settings = project.settings
        base = load_backbone(settings.base, project.root)
        experts = Experts(load_backbone(settings.expert, project.root))
        self._encoder = project_encoder(project, lambda: experts.backbone)
        pool = DomainPool(project, base.facts, experts, self._encoder.spec, base.device)
        super().__init__(base, experts, self._open_router(pool), pool, settings.decoding)
        self._stale = False  # whether the router is of another set than the folder's

    def _follow(self) -> None:
        self._stale |= self.domains.refresh()
        if self._stale:
            self.router = self._open_router(self.domains)
            self._stale = False

    def _open_router(self, domains: DomainPool) -> Router:
        routed = domains.routed()
        router = open_router(self.project, routed, self._encoder)
        domains.watch(routed.keys() - set(router.names))
        return router


def _forced(domain: str) -> Route:
    return Route(domain, 1.0, "asked for")


def _checked(questions: Iterable[str]) -> list[str]:
    if isinstance(questions, str) or not isinstance(questions, Iterable):
        raise DataError("several questions are expected here; give a list of texts")
    questions = list(questions)
    for question in questions:
        if not isinstance(question, str) or not question.strip():
            raise DataError("a question is empty; ask something")
    return [check_text(question, "a question") for question in questions]


@contextmanager
def _clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - started, 4)

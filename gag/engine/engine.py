"""GAG: route a question, read the expert, project, inject, and let the frozen base answer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import torch

from gag.engine.answer import Answer, Knowledge
from gag.engine.answering import Answering
from gag.engine.asking import Ask, Event, Job
from gag.engine.collecting import Collected, checked_questions
from gag.engine.parts import Domains
from gag.engine.pool import DomainPool, Module, routable
from gag.engine.sources import Source, SourceIndex
from gag.errors import RoutingError, SettingsError
from gag.models.backbone import Backbone
from gag.models.experts import Experts, ExpertSource, LoadedExperts
from gag.models.language_model import LanguageModel, Likely
from gag.models.loading import load_backbone
from gag.project.project import Project, load_project
from gag.project.settings import GENERAL, DecodingSettings
from gag.projection.injection import inject
from gag.readout.states import read
from gag.readout.vocabulary import BaseVocabulary
from gag.routing.router import Route, Router
from gag.routing.state import open_router, project_encoder
from gag.routing.turns import Routes


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
        self.elsewhere = False  # whether other machines run the models
        self._answering: Answering | None = None

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
        return self.router.route(checked_questions(questions))

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
        asked = checked_questions(questions)
        self._follow()
        if domain not in (None, GENERAL):
            self.domains.module(domain)  # one that is not here, or refused, is said at once
        self._answering = self._answering or Answering(self, in_phases=True)
        collected = [Collected(Ask((("user", question),), domain)) for question in asked]
        for one in collected:
            self._answering.add(one.job)
        try:
            while self._answering.busy:
                self._answering.step()
        except BaseException:  # what is on its way is given up; the next ones begin anew
            self._answering = None
            raise
        return [one.answer() for one in collected]

    def tell(self, ask: Ask, to: Callable[[Event], None]) -> None:
        """Answer one ask, and tell what happens while it does, event by event.

        Args:
            ask: the question or conversation, and how it is to be answered.
            to: takes the events, in order.
        """
        self._follow()
        answering = Answering(self)
        answering.add(Job(ask, to))
        while answering.busy:
            answering.step()

    def read(
        self,
        questions: Sequence[str],
        domain: str,
        module: Module | None = None,
        written: list[list[int]] | None = None,
        likely: list[Likely] | None = None,
    ) -> list[Knowledge]:
        """Read a domain's expert on questions and project what it knows.

        Args:
            questions: the questions.
            domain: whose expert is read.
            module: another readout and projector of the same expert (default: the domain's own).
            written: what the expert wrote to each, where it did.
            likely: what it found likeliest behind each token of that.
        """
        module = module or self.domains.module(domain)
        if not questions:
            return []
        words = BaseVocabulary(self.base.embeddings, self.base.prompts)
        asked, system = list(questions), module.prompts.expert
        settings, common = module.readout, module.common
        readout = read(self.experts, module.expert, asked, system, settings, words, written, common, likely)
        with torch.no_grad():
            device = next(module.projector.parameters()).device
            vectors = module.projector(readout.slots.to(device))  # [B, S, Db]
        rows = zip(vectors, readout.texts, readout.words, strict=True)
        return [Knowledge(*row) for row in rows]

    def prompt(self, question: str, domain: str, knowledge: Knowledge | None) -> torch.Tensor:
        """Build the base's input for one question: plain, or around its knowledge vectors -> [T, Db]."""
        if knowledge is None:
            return self.base.embed(self.base.prompts.plain(question))
        around = self.base.prompts.with_knowledge(question, self.domains.module(domain).prompts)
        return inject(self.base, around, knowledge.vectors)

    def _follow(self) -> None:
        self.domains.refresh()


class ProjectGAG(GAG):
    """The engine over a project's folder; it follows the folder while it runs."""

    experts: LoadedExperts
    router: Router
    domains: DomainPool

    def __init__(self, project: Project):
        self.project = project
        settings = project.settings
        if settings.engine == "remote":
            from gag.remote.opening import open_base, open_encoder, open_experts

            base, experts = open_base(project), open_experts(project)
            self.encoder = open_encoder(project, experts)
        else:
            base = load_backbone(settings.base, project.root)
            experts = Experts(load_backbone(settings.expert, project.root))
            self.encoder = project_encoder(project, lambda: experts.backbone)
        pool = DomainPool(project, base.facts, experts, self.encoder.spec, base.device)
        super().__init__(base, experts, self._open_router(pool), pool, settings.decoding)
        self.elsewhere = settings.engine == "remote"
        self._stale = False  # whether the router is of another set than the folder's
        self._sources: dict[str, tuple[str, SourceIndex | None]] = {}  # by domain, with its revision

    def sources(self, domain: str, question: str, written: str, answer: str) -> list[Source]:
        """Find the passages that an answer may rest on, the best first; any thread may ask.

        Args:
            domain: which answered; of general, and of one that carries no passages, there are none.
            question: what was asked.
            written: what the expert wrote to it.
            answer: what the base answered.

        Raises:
            ArtifactError: the domain's passages are harmed.
        """
        if domain == GENERAL:
            return []
        found = self.domains.domain(domain)
        held = self._sources.get(domain)
        if held is None or held[0] != found.revision:
            held = self._sources[domain] = found.revision, SourceIndex.of(found)
        return held[1].find(question, written, answer) if held[1] else []

    def _follow(self) -> None:
        self._stale |= self.domains.refresh()
        if self._stale:
            self.router = self._open_router(self.domains)
            self._stale = False

    def look(self) -> Callable[[], None] | None:
        """Look at the folder from another thread, and make the router for what is there.

        Returns: What takes it up, between two steps of the thread that owns the engine; None where nothing
            changed.
        """
        found = self.domains.scan()
        changed = self.domains.changed(found)
        faulty = {name: entry.fault for name, entry in found.items() if entry.fault}
        if not (changed or self._stale or faulty.keys() - self.domains.faults.keys()):
            return None
        routed = routable(found)
        for name in changed & routed.keys():
            self.domains.seen(routed[name])
        router = open_router(self.project, routed, self.encoder) if changed or self._stale else None

        def take() -> None:
            self.domains.take(found)
            if router:
                self.domains.watch(routed.keys() - set(router.names))
                self.router, self._stale = router, False

        return take

    def _open_router(self, domains: DomainPool) -> Router:
        routed = domains.routed()
        router = open_router(self.project, routed, self.encoder)
        domains.watch(routed.keys() - set(router.names))
        return router


class LocalGAG(ProjectGAG):
    """The engine whose models are in this process: what measures them, or tunes them, needs this one."""

    base: Backbone  # pyright: ignore[reportIncompatibleVariableOverride]
    experts: Experts  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, project: Project):
        if project.settings.engine != "transformers":
            raise SettingsError("this needs the models themselves; run it with --set engine=transformers")
        super().__init__(project)

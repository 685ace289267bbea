"""GAG: route a question, read the expert, project, inject, and let the frozen base answer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gag.engine.domain import Domain, load_domain
from gag.errors import ArtifactError, DataError
from gag.models.backbone import Backbone, load_backbone, pad_left
from gag.models.experts import Experts
from gag.project.artifacts import read_manifest
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import check_text
from gag.project.settings import GENERAL, ReadoutSettings
from gag.projection.injection import inject
from gag.projection.projector import Projector
from gag.readout.states import read
from gag.routing.backbone_encoder import BackboneEncoder
from gag.routing.bank import QUESTIONS, load_bank, load_questions
from gag.routing.calibration import load_calibration
from gag.routing.encoders import make_encoder
from gag.routing.router import Route, Router


@dataclass(frozen=True)
class Module:
    """How a domain's expert is read, and its projector."""

    readout: ReadoutSettings
    projector: Projector


@dataclass(frozen=True)
class Knowledge:
    """What a domain's module gives for one question."""

    vectors: torch.Tensor  # [S, Db]
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer of the frozen base, and how it came about."""

    question: str
    text: str
    route: Route
    tokens_added: int
    seconds: dict[str, float]  # of the batch: route, read, answer
    background: str | None


class GAG:
    """A frozen base, one expert backbone, and the domains of a project. One thread owns it."""

    def __init__(self, project: Project):
        settings = project.settings
        self.project = project
        self.domains = {name: load_domain(project.domain(name)) for name in project.present()}
        self.base = load_backbone(settings.base, project.root)
        self.experts = Experts(load_backbone(settings.expert, project.root))
        self._modules: dict[str, Module] = {}
        for name, domain in self.domains.items():
            self._check(domain)
            self.experts.load(name, domain.expert)
            self._modules[name] = Module(domain.facts.readout, domain.projector().to(self.base.device))
        self.router = _router(project, lambda: self.experts.backbone, self.domains)

    def route(self, questions: list[str]) -> list[Route]:
        """Say where each question goes."""
        return self.router.route(_checked(questions))

    def ask(self, questions: list[str], domain: str | None = None) -> list[Answer]:
        """Answer questions in batches; `domain` (or `general`) overrides the router."""
        size = self.project.settings.decoding.batch_size
        questions = _checked(questions)
        if domain is not None:
            self.project.require(domain)
        return [
            answer
            for start in range(0, len(questions), size)
            for answer in self._ask(questions[start : start + size], domain)
        ]

    def sentence_encoder(self) -> BackboneEncoder:
        """The expert backbone without adapters as a sentence encoder."""
        return BackboneEncoder(
            self.experts.backbone, self.experts.facts.fingerprint, self.project.settings.router
        )

    def know(self, questions: list[str], domain: str, module: Module | None = None) -> list[Knowledge]:
        """Read a domain's expert on questions and project what it knows, by its own module or another of this expert."""
        chosen, system = module or self._modules[domain], self.domains[domain].facts.prompts.expert
        with self.experts.using(domain) as expert:
            readout = read(expert, questions, system, chosen.readout, self._table(chosen.readout))
        with torch.no_grad():
            vectors = chosen.projector(readout.slots.to(self.base.device))  # [B, S, Db]
        return [Knowledge(v, text) for v, text in zip(vectors, readout.texts, strict=True)]

    def embed(self, question: str, domain: str, knowledge: Knowledge | None) -> torch.Tensor:
        """Build the base's input for one question: plain, or around its knowledge vectors -> [T, Db]."""
        if knowledge is None:
            return self.base.embed(self.base.prompts.plain(question))
        instruction = self.domains[domain].facts.prompts.answer
        return inject(self.base, self.base.prompts.with_knowledge(question, instruction), knowledge.vectors)

    def generate(self, rows: list[torch.Tensor]) -> list[str]:
        """Let the base answer a batch of inputs, each [T, Db]."""
        written = self.base.generate(pad_left(rows), self.project.settings.decoding.max_new_tokens)
        return [self.base.prompts.decode(ids) for ids in written]

    def _ask(self, questions: list[str], domain: str | None) -> list[Answer]:
        seconds: dict[str, float] = {}
        with _clock(seconds, "route"):
            routes = self.router.route(questions) if domain is None else [_forced(domain)] * len(questions)
        with _clock(seconds, "read"):
            knowledge = self._know_all(questions, routes)
        with _clock(seconds, "answer"):
            rows = [self.embed(q, r.domain, k) for q, r, k in zip(questions, routes, knowledge, strict=True)]
            texts = self.generate(rows)
        return [
            Answer(q, text, route, len(k.vectors) if k else 0, seconds, k.text if k else None)
            for q, text, route, k in zip(questions, texts, routes, knowledge, strict=True)
        ]

    def _know_all(self, questions: list[str], routes: list[Route]) -> list[Knowledge | None]:
        """Read each domain's expert once for its questions; general ones get nothing."""
        knowledge: list[Knowledge | None] = [None] * len(questions)
        for domain in {route.domain for route in routes} - {GENERAL}:
            chosen = [i for i, route in enumerate(routes) if route.domain == domain]
            for i, known in zip(chosen, self.know([questions[i] for i in chosen], domain), strict=True):
                knowledge[i] = known
        return knowledge

    def _table(self, readout: ReadoutSettings) -> torch.Tensor | None:
        """Return the base's token embeddings [V, Db] for a readout of what the expert foretells."""
        return self.base.model.get_input_embeddings().weight if readout.space == "vocabulary" else None  # pyright: ignore

    def _check(self, domain: Domain) -> None:
        domain.facts.base.check("base", self.base.facts, domain.name)
        domain.facts.expert.check("expert", self.experts.facts, domain.name)


def load_router(project: Project, saved: bool = True) -> Router:
    """Load only what routing needs, the query encoder and the banks; without `saved`, calibrate anew."""
    domains = {name: load_domain(project.domain(name)) for name in project.present()}
    return _router(project, lambda: load_backbone(project.settings.expert, project.root), domains, saved)


def explain_route(project: Project, router: Router, question: str) -> dict[str, Any]:
    """Say what a route was decided by: margins, distance, nearest prototypes, and questions where a domain carries them."""
    vector = router.encoder.encode([question])
    verdict = router.judge(vector)
    folders = {GENERAL: project.general} | {name: project.domain(name) for name in router.names[1:]}
    carried = {
        name: load_questions(f).nearest(vector[0], 3)
        for name, f in folders.items()
        if (f / QUESTIONS).is_file()
    }
    return {
        "rule": router.rule,
        "margin": float(verdict.margins[0]) if len(router.names) > 1 else None,
        "margin_needed": router.margin,
        "distance": None if verdict.distances is None else float(verdict.distances[0]),
        "far": router.calibration.far if router.calibration else None,
        "prototypes": {name: asdict(near) for name, near in router.nearest(vector[0]).items()},
        "questions": carried,
    }


def _router(
    project: Project, expert: Callable[[], Backbone], domains: dict[str, Domain], load: bool = True
) -> Router:
    banks = {name: domain.bank() for name, domain in domains.items()}
    if not project.general.is_dir():
        raise ArtifactError("the general bank is not built; run `gag prototypes general`")
    banks[GENERAL] = load_bank(project.general, read_manifest(project.general)["bank"])
    saved = load_calibration(project.calibration) if load else None
    router = Router(banks, make_encoder(project, expert), project.settings.router, saved)
    if router.warning:
        say(router.warning)
    return router


def _forced(domain: str) -> Route:
    return Route(domain, 1.0, "asked for")


def _checked(questions: list[str]) -> list[str]:
    if any(not question.strip() for question in questions):
        raise DataError("a question is empty; ask something")
    return [check_text(question, "a question") for question in questions]


@contextmanager
def _clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - started, 4)

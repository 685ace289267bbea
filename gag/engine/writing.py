"""What experts write for questions that come and go, a token of each in a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import shorten

from gag.engine.asking import Background, Job
from gag.engine.pool import Module
from gag.models.experts import ExpertSource
from gag.models.language_model import FailedRequestError, Likely, Request, check_room
from gag.models.sampling import seeded
from gag.models.text_stream import TextStream
from gag.readout.states import behind, foretelling


@dataclass(frozen=True)
class Text:
    """What an expert writes for a job."""

    job: Job
    domain: str
    module: Module
    asked: str
    budget: int
    stream: TextStream
    ids: list[int] = field(default_factory=list)
    steps: list[Likely] = field(default_factory=list)  # what each step found likeliest, where that is read

    @property
    def likely(self) -> Likely | None:
        """What was likeliest behind each token [T, K]; behind the prompt where nothing was written."""
        return behind(self.steps, self.ids) if self.steps else None


class Writer:
    """One expert, or several that run together, writing for all who ask them.

    Args:
        experts: where they are held.
        module: of the first domain that is asked.
    """

    def __init__(self, experts: ExpertSource, module: Module):
        self._experts, self._mixed = experts, experts.mixed(module.expert) is not None
        self._expert = "" if self._mixed else module.expert
        self._texts: dict[int, Text] = {}
        self.whole: list[Text] = []  # to be read
        with self._running():
            model = experts.mixed(module.expert) or self._model
            self._generator = model.generator(tokens=module.readout.batch_tokens)
        self._model, self._prompts = model, model.prompts
        self._prefixes: dict[str, tuple[int, ...]] = {}  # by what the expert is told

    @property
    def count(self) -> int:
        """Questions that it writes for."""
        return len(self._texts)

    @property
    def in_use(self) -> set[str]:
        """The experts that write, or whose texts are to be read."""
        return {text.module.expert for text in (*self._texts.values(), *self.whole)}

    def add(self, job: Job, domain: str, module: Module, asked: str, budget: int) -> None:
        """Take a question; DataError: it is too long for the expert."""
        system, drawn = module.prompts.expert, module.readout
        if system not in self._prefixes:
            self._prefixes[system] = self._prompts.shared(lambda q: self._prompts.ask_expert(q, system))
        ids, prefix = self._prompts.ask_expert(asked, system), self._prefixes[system]
        check_room(self._model, len(ids) + budget, f"the question {shorten(asked, 60)!r}")
        text, top = Text(job, domain, module, asked, budget, TextStream(self._prompts)), foretelling(drawn)
        steps = budget + 1 if top else budget
        if not steps:  # the prompt's last token is read
            self.whole.append(text)
            return
        cut = len(prefix) if tuple(ids[: len(prefix)]) == prefix else 0
        sampling = seeded(asked, drawn.seed, steps, drawn.temperature, drawn.top_p, drawn.top_k)
        request = Request(ids[cut:], steps, sampling, top, tuple(ids[:cut]), module.expert)
        self._texts[self._generator.add([request])[0]] = text

    def drop(self, job: Job) -> None:
        """Forget a job."""
        self.whole = [text for text in self.whole if text.job is not job]
        gone = [number for number, text in self._texts.items() if text.job is job]
        self._generator.drop(gone)
        for number in gone:
            del self._texts[number]

    def take(self) -> list[list[Text]]:
        """Take the texts that are whole, those of one expert together."""
        groups: dict[str, list[Text]] = {}
        for text in self.whole:
            groups.setdefault(text.module.expert, []).append(text)
        self.whole = []
        return list(groups.values())

    def step(self) -> None:
        """Write a token for each question."""
        if not self._texts:
            return
        try:
            with self._running():
                tokens = self._generator.step()
        except FailedRequestError as failed:
            self._texts.pop(failed.request).job.refuse(failed.error)
            return
        for token in tokens:
            text, new = self._texts[token.request], ""
            if token.top:
                text.steps.append(token.top)
            if token.finish != "stop" and len(text.ids) < text.budget:
                text.ids.append(token.id)
                new = text.stream.add(token.id)
            if token.finish:
                new += text.stream.end()
                self.whole.append(self._texts.pop(token.request))
            if new:
                text.job.tell(Background(new))

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Have the one expert active; those that run together are named by their requests."""
        with self._experts.using(self._expert or None) as self._model:
            yield

"""What an expert writes for questions that come and go, a token of each in a step."""

from dataclasses import dataclass, field
from textwrap import shorten

import torch

from gag.engine.asking import Background, Job
from gag.engine.pool import Module
from gag.models.experts import ExpertSource
from gag.models.language_model import Likely, NoMemoryError, Request, check_room
from gag.models.sampling import seeded
from gag.models.text_stream import TextStream
from gag.readout.states import foretelling


@dataclass(frozen=True)
class Text:
    """What an expert writes for a job."""

    job: Job
    asked: str
    budget: int
    stream: TextStream
    ids: list[int] = field(default_factory=list)
    steps: list[Likely] = field(default_factory=list)  # what each step found likeliest

    @property
    def likely(self) -> Likely:
        """What was likeliest behind each token [T, K]; behind the prompt where nothing was written."""
        behind = self.steps[1:] if self.ids else self.steps
        ids, chances = ([getattr(one, name) for one in behind] for name in ("ids", "log_probabilities"))
        return Likely(torch.stack(ids), torch.stack(chances))


class Writer:
    """One expert, writing for all who ask it.

    Args:
        experts: where it is held.
        domain: whose expert it is.
        module: how it is asked.
    """

    def __init__(self, experts: ExpertSource, domain: str, module: Module):
        self.domain, self.module, self._experts = domain, module, experts
        self._texts: dict[int, Text] = {}
        self.whole: list[Text] = []  # to be read
        with experts.using(module.expert) as expert:
            self._generator = expert.generator(tokens=module.readout.batch_tokens)
            self._prompts, self._model = expert.prompts, expert
        self._prefix = self._prompts.shared(self._ask)
        self.foretells = foretelling(module.readout)

    @property
    def count(self) -> int:
        """Questions that it writes for."""
        return len(self._texts)

    def add(self, job: Job, asked: str, budget: int) -> None:
        """Take a question; DataError: it is too long for the expert."""
        ids, drawn = self._ask(asked), self.module.readout
        check_room(self._model, len(ids) + budget, f"the question {shorten(asked, 60)!r}")
        text = Text(job, asked, budget, TextStream(self._prompts))
        steps = budget + 1 if self.foretells else budget
        if not steps:  # the prompt's last token is read
            self.whole.append(text)
            return
        cut = len(self._prefix) if tuple(ids[: len(self._prefix)]) == self._prefix else 0
        sampling = seeded(asked, drawn.seed, steps, drawn.temperature, drawn.top_p, drawn.top_k)
        request = Request(ids[cut:], steps, sampling, self.foretells, tuple(ids[:cut]))
        self._texts[self._generator.add([request])[0]] = text

    def drop(self, job: Job) -> None:
        """Forget a job."""
        self.whole = [text for text in self.whole if text.job is not job]
        gone = [number for number, text in self._texts.items() if text.job is job]
        self._generator.drop(gone)
        for number in gone:
            del self._texts[number]

    def take(self) -> list[Text]:
        """Take the texts that are whole."""
        whole, self.whole = self.whole, []
        return whole

    def step(self) -> None:
        """Write a token for each question."""
        if not self._texts:
            return
        try:
            with self._experts.using(self.module.expert):
                tokens = self._generator.step()
        except NoMemoryError as error:
            self._texts.pop(error.request).job.refuse(error)
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

    def _ask(self, question: str) -> list[int]:
        return self._prompts.ask_expert(question, self.module.prompts.expert)

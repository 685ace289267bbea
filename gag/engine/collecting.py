"""Questions in, answers out: texts that can be asked, and the events of each put together."""

from collections.abc import Iterable

from gag.engine.answer import Answer
from gag.engine.asking import Ask, Ended, Event, Job, Read, Refused, Routed, Said
from gag.errors import DataError
from gag.project.rows import check_text
from gag.routing.router import Route


class Collected:
    """A job whose events become an answer."""

    def __init__(self, ask: Ask):
        self.job = Job(ask, self._take)
        self._route, self._read = Route("", 0.0, ""), Read(None, 0)
        self._texts: list[str] = []
        self._end, self._error = Ended(0, "stop", 0), ""

    def _take(self, event: Event) -> None:
        match event:
            case Routed(route):
                self._route = route
            case Read():
                self._read = event
            case Said(_, text, _):
                self._texts.append(text)
            case Ended():
                self._end = event
            case Refused(error):
                self._error = str(error)

    def answer(self) -> Answer:
        """Put the answer together."""
        question, seconds = self.job.ask.questions[-1], self.job.seconds
        if self._error:
            return Answer(question, "", self._route, "refused", 0, 0, None, seconds, self._error)
        return Answer(
            question=question,
            text="".join(self._texts),
            route=self._route,
            finish=self._end.finish,
            prompt_tokens=self._read.prompt_tokens,
            answer_tokens=self._end.answer_tokens,
            knowledge=self._read.knowledge,
            seconds=seconds,
        )


def checked_questions(questions: Iterable[str]) -> list[str]:
    """Return questions as a list; DataError: one is empty or no text."""
    if isinstance(questions, str) or not isinstance(questions, Iterable):
        raise DataError("several questions are expected here; give a list of texts")
    questions = list(questions)
    for question in questions:
        if not isinstance(question, str) or not question.strip():
            raise DataError("a question is empty; ask something")
    return [check_text(question, "a question") for question in questions]

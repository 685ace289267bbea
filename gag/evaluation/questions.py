"""The questions of a comparison, and their slices: those that rows name, and some that questions show."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gag.errors import DataError
from gag.evaluation.labelled import LabelledQuestion, read_labelled, read_test_rows
from gag.project.project import Project
from gag.project.rows import Example, Passage
from gag.project.settings import GENERAL
from gag.project.words import tokens

MOST, QUICK_MOST, SEEN_MOST, GENERAL_MOST = 500, 240, 100, 100
COMMON = 20  # a word that stands in more than one statement of so many carries no content
SEED = 7


@dataclass(frozen=True)
class Questions:
    """What every method is asked: test questions, behind them some that alignment saw, and general ones."""

    rows: list[LabelledQuestion]
    tested: int  # how many of them are test questions
    general: list[LabelledQuestion]

    @property
    def texts(self) -> list[str]:
        """The questions of the domain."""
        return [row.question for row in self.rows]

    @property
    def golds(self) -> list[tuple[str, ...]]:
        """Their gold answers."""
        return [row.answers for row in self.rows]


def draw_questions(project: Project, domain: str, quick: bool) -> Questions:
    """Take the test rows, or a fixed draw of them, some rows that alignment saw, and general ones."""
    rng = random.Random(SEED)
    rows = [row for row in read_test_rows(project, [domain]) if row.answers]
    if not rows:
        raise DataError(f"no test row of {domain} has a gold answer; add answers")
    most = QUICK_MOST if quick else MOST
    rows = rng.sample(rows, most) if len(rows) > most else rows
    align = [example for example in project.inputs(domain).splits.align if example.answers]
    seen = [_seen(example, domain) for example in rng.sample(align, min(SEEN_MOST, len(align)))]
    return Questions(rows + seen, len(rows), _general(project))


def slices_of(rows: list[LabelledQuestion], passages: list[Passage]) -> dict[str, list[int]]:
    """Group the questions -> their places by slice: by what their rows say, and by `_shown`."""
    statements = {passage.id: set(tokens(passage.text)) for passage in passages}
    common = _common_words(statements.values())
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        for name in dict.fromkeys([*row.slices, *_shown(row, statements.get(row.group or ""), common)]):
            groups.setdefault(name, []).append(i)
    return groups


def _shown(row: LabelledQuestion, statement: set[str] | None, common: set[str]) -> list[str]:
    """Name the slices that a question shows by its answers, and by the words it shares with its statement."""
    names = []
    if any(answer.strip().replace(".", "", 1).isdigit() for answer in row.answers):
        names.append("numeric answers")
    if statement is not None and not (set(tokens(row.question)) - common) & statement:
        names.append("no content word shared with the statement")
    return names


def _common_words(statements: Iterable[set[str]]) -> set[str]:
    listed = list(statements)
    counts = Counter(word for words in listed for word in words)
    return {word for word, count in counts.items() if count > len(listed) / COMMON}


def _seen(example: Example, domain: str) -> LabelledQuestion:
    return LabelledQuestion(
        id=f"seen/{example.id}",
        question=example.question,
        answers=example.answers,
        domain=domain,
        dataset=domain,
        group=example.group,
        slices=("facts that alignment saw",),
    )


def _general(project: Project) -> list[LabelledQuestion]:
    """Take some general questions with answers, if the project names any."""
    if project.settings.general.test is None:
        return []
    file = project.file(project.settings.general.test)
    rows = [row for row in read_labelled(file, project.settings.labels, GENERAL) if row.answers]
    return random.Random(SEED).sample(rows, min(GENERAL_MOST, len(rows)))

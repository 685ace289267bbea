"""Questions to judge by: rows with their gold answers and the domain that they belong to."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gag.errors import DataError, SettingsError
from gag.project.progress import say, say_once
from gag.project.project import Project
from gag.project.rows import check_text, read_question, row_name, unread_columns
from gag.project.settings import GENERAL
from gag.project.tables import read_table


@dataclass(frozen=True)
class LabelledQuestion:
    """A question, its gold answers (none: it cannot be scored), and its domain (None: not said)."""

    id: str
    question: str
    answers: tuple[str, ...]
    domain: str | None
    dataset: str  # what picks the metric: `dataset_name`, or the domain
    group: str | None = None  # of the fact that it asks for
    slices: tuple[str, ...] = ()  # that a comparison groups it under


@dataclass(frozen=True)
class AnsweredQuestion:
    """A labelled question's answers on the router's route and on the true one: a line of answers.jsonl."""

    id: str
    question: str
    route: str  # the domain that the router chose
    score: float  # of that route
    routed: str
    oracle: str | None  # on the route of its own domain; None where that is not said
    tokens_added: int
    background: str | None  # what the expert wrote for the routed answer
    gold: list[str]
    support: float | None = None  # nats per token, where evidence is asked for
    routes: dict[str, float] = field(default_factory=dict)  # the router's score of each domain
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # routed and oracle: by metric


def read_labelled(path: Path, labels: dict[str, str], domain: str | None = None) -> list[LabelledQuestion]:
    """Read rows {"question", "answer"?, "domain" | "label" | "dataset_name"?}; ids must differ.

    `labels` maps a label or data set to a domain; `domain` is that of rows which name none. A label that is
    mapped to no domain is a domain of that name, which is not here (`those_here`). Faulty rows are set aside
    and named (`read_table`).
    """
    found: list[dict[str, Any]] = []

    def make(row: dict[str, Any], place: str, line: int) -> LabelledQuestion:
        labelled = _labelled(row, place, line, labels, domain)
        found.append(row)
        return labelled

    rows = read_table(path, make)
    if not rows:
        raise DataError(f"{path.name} holds no rows; expected one JSON object per line")
    if unread := unread_columns(found):
        say_once(
            f"{path.name}: nothing reads {', '.join(unread)}; put what a question needs into the question"
        )
    seen: dict[str, int] = {}
    for place, row in enumerate(rows, 1):
        if row.id in seen:
            raise DataError(
                f"{path.name}: rows {seen[row.id]} and {place} have the same id {row.id!r}; ids name answers"
            )
        seen[row.id] = place
    return rows


def read_test_rows(project: Project, names: list[str]) -> list[LabelledQuestion]:
    """Read the test files of domains and of general that gag.yaml names."""
    found, labels = [], project.settings.labels
    for name in names:
        file = project.settings.general.test if name == GENERAL else project.described(name).test
        if file is not None:
            found += [
                replace(row, id=f"{name}/{row.id}") for row in read_labelled(project.file(file), labels, name)
            ]
        elif name != GENERAL:
            raise SettingsError(
                f"{name} has no test rows; set domains.{name}.test in gag.yaml, or give --file"
            )
    return found


def those_here(rows: list[LabelledQuestion], names: list[str]) -> list[LabelledQuestion]:
    """Leave out rows of domains that are not here, and say how many there are of each.

    Raises:
        DataError: no row is of a domain here.
    """
    found = [row for row in rows if row.domain is None or row.domain in names]
    absent = Counter(str(row.domain) for row in rows if row.domain not in (None, *names))
    if not absent:
        return found
    counted = ", ".join(f"{name!r} ({count})" for name, count in absent.most_common())
    cure = "build those, or map their labels under `labels` in gag.yaml"
    told = f"{absent.total()} of {len(rows)} rows are of domains that are not here: {counted}"
    if not found:
        raise DataError(f"{told}; {cure}")
    say(f"{told}; they are left out: {cure}")
    return found


def need_domains(rows: list[LabelledQuestion]) -> None:
    """Refuse rows that say nothing of their domain."""
    silent = [row.id for row in rows if row.domain is None]
    if silent:
        raise DataError(
            f"{len(silent)} rows name no domain (first: id {silent[0]}); "
            'add "domain", or a label and `labels` in gag.yaml'
        )


def _labelled(
    row: dict[str, Any], place: str, line: int, labels: dict[str, str], domain: str | None
) -> LabelledQuestion:
    belongs = _domain(row, place, labels, domain)
    return LabelledQuestion(
        id=row_name(row, "id", str(line), place),
        question=read_question(row, place),
        answers=_answers(row, place),
        domain=belongs,
        dataset=str(row.get("dataset_name") or belongs or GENERAL),
        group=row_name(row, "group", "", place) or None,
        slices=_slices(row, place),
    )


def _answers(row: dict[str, Any], place: str) -> tuple[str, ...]:
    answers = row.get("answer", row.get("output"))
    listed = [answers] if isinstance(answers, str) else [] if answers is None else answers
    if not isinstance(listed, list) or not all(isinstance(answer, str) for answer in listed):
        raise DataError(f'{place} needs "answer": a text, or a list of texts')
    return tuple(text for answer in listed if (text := check_text(answer, place)).strip())


def _slices(row: dict[str, Any], place: str) -> tuple[str, ...]:
    named = row.get("slices") or []
    if not isinstance(named, list):
        raise DataError(f'{place}: "slices" must be a list of texts')
    return tuple(str(name) for name in named)


def _domain(row: dict[str, Any], place: str, labels: dict[str, str], default: str | None) -> str | None:
    """Find the domain of a row: by name, or by its label or data set through the map in the settings."""
    if isinstance(row.get("domain"), str):
        return row["domain"]
    given = [str(row[key]) for key in ("label", "dataset_name") if row.get(key) is not None]
    mapped = [labels[value] for value in given if value in labels]
    return mapped[0] if mapped else default if default is not None or not given else given[0]

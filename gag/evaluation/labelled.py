"""Questions to judge by: rows with their gold answers and the domain that they belong to."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gag.errors import DataError, SettingsError
from gag.project.project import Project
from gag.project.rows import check_text, read_question, read_rows
from gag.project.settings import GENERAL


@dataclass(frozen=True)
class Asked:
    """A question, its gold answers (none: it cannot be scored), and where it belongs (None: not said)."""

    id: str
    question: str
    answers: tuple[str, ...]
    domain: str | None
    dataset: str  # what picks the metric: `dataset_name`, or the domain
    row: dict[str, Any] = field(repr=False)  # as it stands in the file


def read_asked(path: Path, labels: dict[str, str], domain: str | None = None) -> list[Asked]:
    """Read rows {"question", "answer"?, "domain" | "label" | "dataset_name"?}; `domain` is that of rows which name none."""
    asked = [_asked(row, f"{path.name}:{line}", line, labels, domain) for line, row in read_rows(path)]
    if not asked:
        raise DataError(f"{path.name} holds no rows; expected one JSON object per line")
    seen: dict[str, int] = {}
    for place, one in enumerate(asked, 1):
        if one.id in seen:
            raise DataError(
                f"{path.name}: rows {seen[one.id]} and {place} have the same id {one.id!r}; ids name answers"
            )
        seen[one.id] = place
    return asked


def read_test_rows(project: Project, names: list[str]) -> list[Asked]:
    """Read the test files of domains and of general that gag.yaml names."""
    found, labels = [], project.settings.labels
    for name in names:
        file = project.settings.general.test if name == GENERAL else project.described(name).test
        if file is not None:
            found += [
                replace(row, id=f"{name}/{row.id}") for row in read_asked(project.file(file), labels, name)
            ]
        elif name != GENERAL:
            raise SettingsError(
                f"{name} has no test rows; set domains.{name}.test in gag.yaml, or give --file"
            )
    return found


def need_domains(rows: list[Asked]) -> None:
    """Refuse rows that say nothing of their domain."""
    silent = [row.id for row in rows if row.domain is None]
    if silent:
        raise DataError(
            f'{len(silent)} rows name no domain (first: id {silent[0]}); add "domain", or a label and `labels` in gag.yaml'
        )


def _asked(row: dict[str, Any], place: str, line: int, labels: dict[str, str], domain: str | None) -> Asked:
    answers = row.get("answer", row.get("output"))
    listed = [answers] if isinstance(answers, str) else [] if answers is None else answers
    if not isinstance(listed, list) or not all(isinstance(answer, str) for answer in listed):
        raise DataError(f'{place} needs "answer": a text, or a list of texts')
    for text in listed:
        check_text(text, place)
    belongs = _domain(row, place, labels, domain)
    dataset = str(row.get("dataset_name") or belongs or GENERAL)
    kept = tuple(answer for answer in listed if answer.strip())
    return Asked(str(row.get("id", line)), read_question(row, place), kept, belongs, dataset, row)


def _domain(row: dict[str, Any], place: str, labels: dict[str, str], default: str | None) -> str | None:
    """Find the domain of a row: by name, or by its label or data set through the map in the settings."""
    if isinstance(row.get("domain"), str):
        return row["domain"]
    given = {key: str(row[key]) for key in ("label", "dataset_name") if row.get(key) is not None}
    for value in given.values():
        if value in labels:
            return labels[value]
    if given and default is None:
        shown = " and ".join(f"{key} {value!r}" for key, value in given.items())
        raise DataError(
            f"{place} has {shown}, which `labels` in gag.yaml maps to no domain; add: labels: {{...: a domain}}"
        )
    return default

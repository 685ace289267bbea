"""What a look at files of rows finds."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something about a file.

    Attributes:
        file: its name.
        level: an error stops a build, a warning costs quality.
        what: what is found.
        count: in how many rows.
        lines: the first of them.
        cure: what to do.
    """

    file: str
    level: Level
    what: str
    count: int
    lines: tuple[int, ...]
    cure: str


@dataclass(frozen=True)
class CheckedFile:
    """A file's rows in short.

    Attributes:
        file: its name.
        rows: that can be read.
        questions: different ones.
        answered: rows with an answer.
        columns: how often each column has something.
        labels: rows of each domain, label or data set.
        longest: tokens of the longest question, and of the longest answer; none: nothing counted them.
    """

    file: str
    rows: int
    questions: int
    answered: int
    columns: dict[str, int]
    labels: dict[str, int]
    longest: tuple[int, int] | None


@dataclass(frozen=True)
class Checked:
    """What was found."""

    files: list[CheckedFile]
    findings: list[Finding]

    @property
    def errors(self) -> int:
        """How many findings stop a build."""
        return sum(finding.level == "error" for finding in self.findings)

"""One domain's inputs, resolved once: files, digests, prompts and rows by role, for all of its stages.

Where one file teaches the expert and trains the projector, the groups that validate the projector teach
neither: the validation loss then says how readouts of facts behave that nobody was taught. A separate `adapt`
file may teach facts that alignment and validation only ask.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from gag.errors import DataError, SettingsError
from gag.project.keys import model_key
from gag.project.parsing import PROJECT_FILE
from gag.project.progress import say_once
from gag.project.rows import (
    Example,
    Passage,
    check_disjoint,
    digest,
    read_examples,
    read_passages,
    read_questions,
    split_groups,
)
from gag.project.settings import DomainSettings, ProjectSettings, PromptSettings
from gag.project.tables import constant_instruction
from gag.project.words import common_words

VAL_SHARE = 0.1


@dataclass(frozen=True)
class Splits:
    """Rows that train the projector, and rows that choose the best one.

    No group is in both, nor in the test file. With `align.distill`, rows that train may have no answer.
    """

    align: list[Example]
    val: list[Example]


@dataclass(frozen=True)
class DomainInputs:
    """What a domain's stages are made from."""

    name: str
    settings: ProjectSettings
    prompts: PromptSettings
    root: Path
    adapt: Path  # the file that teaches the expert
    align: Path  # the file that trains the projector, and whose questions are the router's bank
    val: Path | None
    test: Path | None
    corpus: Path | None
    run: Callable[[str], Path]  # a stage -> its working folder

    @property
    def shared(self) -> bool:
        """Whether one file teaches the expert and trains the projector."""
        return self.adapt == self.align or digest(self.adapt) == digest(self.align)

    @cached_property
    def splits(self) -> Splits:
        """The rows of alignment and of its validation."""
        align = read_examples(
            self.align, unanswered=self.settings.align.distill > 0 and self.adapt != self.align
        )
        if self.val:
            val = read_examples(self.val)
            check_disjoint(align, val, ("align", "val"))
        else:
            answered = [example for example in align if example.answers]
            _, val = split_groups(answered, VAL_SHARE, self.settings.align.seed)
            held_out = {example.group for example in val}
            align = [example for example in align if example.group not in held_out]
        if not align or not val:
            raise DataError(
                f"{self.name} has too few groups in its align rows for training and validation; add rows"
            )
        if self.test:
            test = read_examples(self.test)
            check_disjoint(align, test, ("align", "test"))
            check_disjoint(val, test, ("val", "test"))
        return Splits(align, val)

    @cached_property
    def taught(self) -> list[Example]:
        """The rows that teach the expert: without validation's groups, where one file serves both stages."""
        rows = read_examples(self.adapt)
        if not self.shared:
            return rows
        held_out = {example.group for example in self.splits.val}
        return [example for example in rows if example.group not in held_out]

    @cached_property
    def common(self) -> dict[str, float]:
        """The words that many of the expert's answers share, where the readout looks for what is news."""
        if self.settings.readout.select != "salient":
            return {}
        return common_words(answer for example in self.taught for answer in example.answers)

    @cached_property
    def passages(self) -> list[Passage] | None:
        """The documents that the expert reads before its questions, if the domain has some."""
        return read_passages(self.corpus) if self.corpus else None

    @cached_property
    def taught_key(self) -> dict[str, Any]:
        """What `taught` is read from."""
        named: dict[str, Any] = {"data": digest(self.adapt)}
        return named | {"without": self.split_key} if self.shared else named

    @cached_property
    def split_key(self) -> dict[str, Any]:
        """What `splits` is read from."""
        chosen = (
            {"val": digest(self.val)} if self.val else {"seed": self.settings.align.seed, "share": VAL_SHARE}
        )
        return {"align": digest(self.align)} | chosen

    @cached_property
    def base_key(self) -> dict[str, Any]:
        """The base, named without loading it."""
        return model_key(self.settings.base, self.root)

    @cached_property
    def expert_key(self) -> dict[str, Any]:
        """The expert backbone, named without loading it."""
        return model_key(self.settings.expert, self.root)

    def digests(self) -> dict[str, str]:
        """Hash the files by role, as the domain's description records them."""
        named = {"adapt": self.adapt, "align": self.align, "val": self.val, "test": self.test}
        return {role: digest(path) for role, path in named.items() if path}


def resolve(
    name: str, described: DomainSettings, settings: ProjectSettings, root: Path, run: Callable[[str], Path]
) -> DomainInputs:
    """Find a domain's files inside the project; one that is missing, outside or not named is refused."""

    def named(role: str) -> Path:
        file = described.file(role)  # pyright: ignore[reportArgumentType]
        if file is None:
            learner = {"adapt": "expert", "align": "projector"}[role]
            raise SettingsError(
                f"{name} has no rows for its {learner}; set domains.{name}.train or .{role} in {PROJECT_FILE}"
            )
        return project_file(root, file)

    others = {role: getattr(described, role) for role in ("val", "test", "corpus")}
    found = {role: project_file(root, file) if file else None for role, file in others.items()}
    adapt = named("adapt")
    prompts = _prompts(name, described.prompts, adapt)
    return DomainInputs(name, settings, prompts, root, adapt, named("align"), run=run, **found)


def _prompts(name: str, described: PromptSettings, rows: Path) -> PromptSettings:
    """Return a domain's prompts; an instruction that all of its rows share is the expert's, where none is."""
    if "expert" in described.model_fields_set or not rows.is_file():
        return described
    persona = constant_instruction(rows)
    if not persona:
        return described
    say_once(
        f"{rows.name}: the instruction of all rows is one text; it stands in no question, and is "
        f"domains.{name}.prompts.expert"
    )
    return described.model_copy(update={"expert": persona})


def general_questions(settings: ProjectSettings, root: Path) -> Path:
    """Return the file of general questions: the project's, or the list in the package."""
    named = settings.general.questions
    return project_file(root, named) if named else Path(str(files("gag.routing") / "general_questions.jsonl"))


def check(settings: ProjectSettings, root: Path, domains: list[DomainInputs]) -> None:
    """Read all rows of a build, and look at the models' files: a fault shows before anything heavy runs."""
    for inputs in domains:
        _ = inputs.taught, inputs.passages, inputs.splits, inputs.base_key, inputs.expert_key
    read_questions(general_questions(settings, root))


def project_file(root: Path, path: str) -> Path:
    """Return a data file of gag.yaml: a path inside the project, where a link may lead elsewhere."""
    full = Path(os.path.normpath(root / path))
    if not full.is_relative_to(os.path.normpath(root)):
        raise SettingsError(
            f"{path} leads out of the project; put the file under the folder of {PROJECT_FILE}"
        )
    if not full.is_file():
        raise SettingsError(f"{path} does not exist in the project; {PROJECT_FILE} names it")
    return full

"""A domain's rows by role: what teaches the expert, what trains and validates the projector, what the router learns."""

from importlib.resources import files
from pathlib import Path

from gag.errors import DataError, SettingsError
from gag.project.project import Project
from gag.project.rows import (
    Example,
    check_disjoint,
    read_examples,
    read_passages,
    read_questions,
    split_groups,
)
from gag.project.settings import GENERAL

VAL_SHARE = 0.1


def adapt_file(project: Project, domain: str) -> Path:
    """Return the file that teaches the expert."""
    name = project.described(domain).file("adapt")
    if name is None:
        raise SettingsError(
            f"{domain} has no rows for its expert; set domains.{domain}.train or .adapt in gag.yaml"
        )
    return project.file(name)


def align_file(project: Project, domain: str) -> Path:
    """Return the file that trains the projector."""
    name = project.described(domain).file("align")
    if name is None:
        raise SettingsError(
            f"{domain} has no rows for its projector; set domains.{domain}.train or .align in gag.yaml"
        )
    return project.file(name)


def corpus_file(project: Project, domain: str) -> Path | None:
    """Return the file of documents that the expert reads before its questions, if there is one."""
    name = project.described(domain).corpus
    return project.file(name) if name else None


def questions_file(project: Project, domain: str) -> Path:
    """Return the questions that stand for the domain: its alignment rows, or the general list."""
    if domain != GENERAL:
        return align_file(project, domain)
    named = project.settings.general.questions
    return project.file(named) if named else Path(str(files("gag.routing") / "general_questions.jsonl"))


def alignment_rows(project: Project, domain: str) -> dict[str, list[Example]]:
    """Return the rows of alignment and of its validation; no group is in both, nor in the test file."""
    described = project.described(domain)
    align = read_examples(align_file(project, domain))
    if described.val:
        val = read_examples(project.file(described.val))
        check_disjoint(align, val, ("align", "val"))
    else:
        align, val = split_groups(align, VAL_SHARE, project.settings.align.seed)
    if not align or not val:
        raise DataError(
            f"{domain} has too few groups in its align rows for training and validation; add rows"
        )
    if described.test:
        test = read_examples(project.file(described.test))
        check_disjoint(align, test, ("align", "test"))
        check_disjoint(val, test, ("val", "test"))
    return {"align": align, "val": val}


def check(project: Project, domains: list[str]) -> None:
    """Read every row that a build of the domains needs, so that a fault shows before anything heavy runs."""
    for domain in domains:
        read_examples(adapt_file(project, domain))
        corpus = corpus_file(project, domain)
        if corpus:
            read_passages(corpus)
        alignment_rows(project, domain)
    read_questions(questions_file(project, GENERAL))

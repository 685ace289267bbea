"""Answer questions with known answers, on the router's route and on the true one, and score what comes out.

`answers.jsonl` grows batch by batch, and running again goes on after its last whole line; another run's file
is refused.
"""

import json
import re
import shutil
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any

from gag.engine.answer import Answer
from gag.engine.engine import ProjectGAG
from gag.engine.evidence import support
from gag.errors import ArtifactError
from gag.evaluation.labelled import AnsweredQuestion, LabelledQuestion
from gag.evaluation.scoring import Scorer
from gag.evaluation.summary import EvaluationSummary, scored, summarise, true_route
from gag.models.loading import one_line
from gag.project.artifacts import MANIFEST, write_json, write_text
from gag.project.domain import DOMAIN
from gag.project.keys import model_key, stage_key
from gag.project.progress import bar, say_once
from gag.project.project import Project
from gag.project.rows import digest
from gag.project.run import Run
from gag.project.settings import BANK, GENERAL, ROUTING

ANSWERS, SUMMARY, INPUTS = "answers.jsonl", "summary.json", "inputs.json"


def evaluate(
    project: Project, name: str, rows: list[LabelledQuestion], evidence: bool = False
) -> EvaluationSummary:
    """Answer rows into runs/evaluation/<name>/, score them, and return the summary that is written there.

    A data set without a metric is refused before any work, and so is a metric whose encoder is not there.
    With `evidence` each answer's support is measured. What was finished there of other inputs stays: this run
    takes the next free name.
    """
    metrics = {metric for row in rows for metric in project.settings.evaluation.of(row.dataset, row.domain)}
    inputs = json.loads(json.dumps(_inputs(project, rows, evidence)))  # as they are read back
    folder = _free(project.root / "runs" / "evaluation" / name, inputs)
    gag = ProjectGAG(project)
    scorer = Scorer(gag)
    scorer.prepare(metrics)
    run = Run(folder, inputs)
    _take_answers(folder, inputs)
    answers = answer_rows(gag, rows, run.folder / ANSWERS, evidence)
    asked = sorted({answer.route for answer in answers} & set(gag.domains.names))
    measured = {name: gag.domains.facts(name).scores.transfer for name in asked}
    transfer = {name: found for name, found in measured.items() if found}
    answers = scored(rows, answers, scorer, project)
    lines = [_line(answer, evidence) for answer in answers]
    write_text(run.folder / ANSWERS, "".join(lines))
    summary = summarise(rows, answers, project, str(folder.relative_to(project.root)), transfer)
    write_json(run.folder / SUMMARY, summary.as_json())
    return summary


def run_name(project: Project, file: Path, rows: list[LabelledQuestion]) -> str:
    """Return the name of a run on a file: its stem; another file of the same name gets a hash beside it."""
    stem = re.sub(r"[^\w.-]", "_", file.stem).strip(".") or "file"
    folder = project.root / "runs" / "evaluation" / stem
    if (folder / INPUTS).is_file() and _described(folder).get("rows") != _rows_key(rows):
        return f"{stem}-{_rows_key(rows)[:8]}"
    return stem


def answer_rows(
    gag: ProjectGAG, rows: list[LabelledQuestion], file: Path, evidence: bool
) -> list[AnsweredQuestion]:
    """Answer each row on the route that the router chooses and on that of its own domain, in the rows' order.

    What the file holds already is kept; each further batch is appended to it.
    """
    done = _done(file)
    left = [row for row in rows if row.id not in done]
    size = gag.project.settings.decoding.batch_size
    with bar("answers", len(left)) as advance, file.open("a", encoding="utf-8") as out:
        for start in range(0, len(left), size):
            batch = left[start : start + size]
            for answer in _answer(gag, batch, evidence):
                out.write(_line(answer, evidence))
                done[answer.id] = answer
            out.flush()
            advance(len(batch))
    return [done[row.id] for row in rows]


def _free(folder: Path, inputs: dict[str, Any]) -> Path:
    """Return a run's folder: the one of that name, or where another run was finished there, the next."""
    places = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return next(p for p in places if not (p / SUMMARY).is_file() or _described(p) == inputs)


def _take_answers(folder: Path, inputs: dict[str, Any]) -> None:
    """Take the answers of a finished run that differs in how they are judged alone."""
    stem = re.sub(r"-\d+$", "", folder.name)
    for other in sorted(folder.parent.glob(f"{stem}*")):
        if not (other / SUMMARY).is_file() or (folder / ANSWERS).exists():
            continue
        if _described(other) | {"judged": None} == inputs | {"judged": None}:
            shutil.copyfile(other / ANSWERS, folder / ANSWERS)


def _described(folder: Path) -> dict[str, Any]:
    """Read what a run was made from."""
    try:
        found = json.loads((folder / INPUTS).read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ArtifactError(
            f"runs/evaluation/{folder.name}/{INPUTS} cannot be read; move that folder away, "
            "then run this again"
        )
    return found


def _rows_key(rows: list[LabelledQuestion]) -> str:
    return stage_key(rows=[(row.id, row.question, row.answers, row.domain, row.dataset) for row in rows])


def _answer(gag: ProjectGAG, batch: list[LabelledQuestion], evidence: bool) -> list[AnsweredQuestion]:
    questions = [row.question for row in batch]
    routes = gag.route(questions)
    wanted = [true_route(row, gag.project) for row in batch]
    asked = {(i, route.domain) for i, route in enumerate(routes)}
    asked |= {(i, domain) for i, domain in enumerate(wanted) if domain is not None}
    answers = _ask_each(gag, questions, asked)
    routed = [answers[i, route.domain] for i, route in enumerate(routes)]
    supports = _supports(gag, routed) if evidence else {}
    return [
        AnsweredQuestion(
            id=row.id,
            question=row.question,
            route=routes[i].domain,
            score=round(routes[i].score, 4),
            routed=routed[i].text,
            oracle=None if domain is None else answers[i, domain].text,
            tokens_added=routed[i].tokens_added,
            background=knowledge.text if (knowledge := routed[i].knowledge) else None,
            gold=list(row.answers),
            support=supports.get(i),
            routes={name: round(score, 4) for name, score in routes[i].scores.items()},
        )
        for i, (row, domain) in enumerate(zip(batch, wanted, strict=True))
    ]


def _ask_each(
    gag: ProjectGAG, questions: list[str], asked: set[tuple[int, str]]
) -> dict[tuple[int, str], Answer]:
    """Answer questions by domains, given as (place, domain); each domain takes its questions together."""
    answers: dict[tuple[int, str], Answer] = {}
    for domain in sorted({domain for _, domain in asked}):
        places = sorted(i for i, d in asked if d == domain)
        found = gag.ask([questions[i] for i in places], domain)
        for refused in (answer for answer in found if answer.finish == "refused"):
            say_once(f"  without an answer: {refused.refusal}")
        answers |= {(i, domain): answer for i, answer in zip(places, found, strict=True)}
    return answers


def _supports(gag: ProjectGAG, answers: list[Answer]) -> dict[int, float | None]:
    """Weigh each specialist's answer against zero vectors -> support by place."""
    found: dict[int, float | None] = {}
    for domain in {answer.route.domain for answer in answers} - {GENERAL}:
        places = [i for i, answer in enumerate(answers) if answer.route.domain == domain]
        questions = [answers[i].question for i in places]
        texts = [answers[i].text for i in places]
        knowledge = [one for i in places if (one := answers[i].knowledge)]
        found |= zip(places, support(gag, questions, texts, domain, knowledge), strict=True)
    return found


def _line(answer: AnsweredQuestion, evidence: bool) -> str:
    """Write an answer as a line; without evidence it says nothing of support."""
    plain = asdict(answer)
    if not evidence:
        del plain["support"]
    return json.dumps(plain, ensure_ascii=False) + "\n"


def _done(file: Path) -> dict[str, AnsweredQuestion]:
    """Read the answers that stand whole; a line that a kill cut short is dropped."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(file, whole)
    try:
        answers = [AnsweredQuestion(**json.loads(line)) for line in whole.split("\n") if line]
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"runs/evaluation/{file.parent.name}/{file.name} is not what was written ({one_line(error)}); "
            "move that folder away, then run this again"
        ) from error
    return {answer.id: answer for answer in answers}


def _inputs(project: Project, rows: list[LabelledQuestion], evidence: bool) -> dict[str, Any]:
    """Name what the answers come of: a run with other inputs is another run."""
    files = {name: project.domain(name) / DOMAIN for name in project.present()}
    described = {name: digest(file) for name, file in files.items() if file.is_file()}
    decided, judges = project.router / MANIFEST, project.settings.evaluation
    return {
        "judged": {
            "metrics": {row.dataset: judges.of(row.dataset, row.domain) for row in rows},
            "encoders": [judges.bertscore, judges.bertscore_layer, judges.similarity],
        },
        "rows": _rows_key(rows),
        "base": model_key(project.settings.base, project.root),
        "domains": described,
        "general": digest(project.general / MANIFEST),
        "calibration": digest(decided) if decided.is_file() else None,
        "router": project.settings.router.key(BANK) | project.settings.router.key(ROUTING),
        "decoding": project.settings.decoding.max_new_tokens,
        "evidence": evidence,
    }

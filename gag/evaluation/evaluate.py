"""Answer questions with known answers, by the router's choice and by the true domain, and score what comes out.

`answers.jsonl` grows batch by batch, and running again goes on after its last whole line; another run's file is refused.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gag.engine.domain import MANIFEST as DOMAIN_MANIFEST
from gag.engine.engine import GAG
from gag.engine.evidence import support
from gag.errors import DataError
from gag.evaluation import metrics
from gag.evaluation.bertscore import BackboneStates, BertScorer, TransformerStates, sentence_similarity
from gag.evaluation.intervals import interval
from gag.evaluation.labelled import Asked
from gag.project.artifacts import read_manifest, write_json
from gag.project.progress import bar
from gag.project.project import Project
from gag.project.rows import digest
from gag.project.run import Run
from gag.project.keys import model_key, stage_key
from gag.project.settings import GENERAL, EncoderSettings
from gag.routing.encoders import SentenceEncoder

ANSWERS, SUMMARY = "answers.jsonl", "summary.json"
Scores = dict[str, list[float]]


def evaluate(project: Project, name: str, rows: list[Asked], evidence: bool = False) -> dict[str, Any]:
    """Answer rows into runs/evaluation/<name>/, score them, and return the summary that is written there."""
    for row in rows:
        project.settings.evaluation.of(row.dataset, row.domain)
    folder, inputs = project.root / "runs" / "evaluation" / name, _inputs(project, rows, evidence)
    if (folder / SUMMARY).is_file() and json.loads(
        (folder / "inputs.json").read_text(encoding="utf-8")
    ) != inputs:
        shutil.rmtree(folder)  # it was finished, of other inputs
    run = Run(folder, inputs)
    gag = GAG(project)
    answers = answer_rows(gag, rows, run.folder / ANSWERS, evidence)
    summary = summarise(rows, answers, scorers(gag), project)
    write_json(run.folder / SUMMARY, summary)
    return summary


def answer_rows(gag: GAG, rows: list[Asked], file: Path, evidence: bool) -> list[dict[str, Any]]:
    """Answer each row on the route that the router chooses and on that of its own domain; return the answers in order."""
    done = _done(file)
    left = [row for row in rows if row.id not in done]
    size = gag.project.settings.decoding.batch_size
    with bar("answers", len(left)) as advance, file.open("a", encoding="utf-8") as out:
        for start in range(0, len(left), size):
            batch = left[start : start + size]
            for answer in _answer(gag, batch, evidence):
                out.write(json.dumps(answer, ensure_ascii=False) + "\n")
                done[answer["id"]] = answer
            out.flush()
            advance(len(batch))
    return [done[row.id] for row in rows]


def scorers(gag: GAG) -> dict[str, Callable[[Sequence[str], Sequence[tuple[str, ...]]], list[float]]]:
    """Return each metric as a function of answers and golds; encoders are loaded once, when first asked for."""
    settings, root = gag.project.settings, gag.project.root
    loaded: dict[str, Any] = {}

    def each(score: Callable[[str, tuple[str, ...]], float]) -> Callable[..., list[float]]:
        return lambda answers, golds: [float(score(a, g)) for a, g in zip(answers, golds, strict=True)]

    def bertscore(answers: Sequence[str], golds: Sequence[tuple[str, ...]]) -> list[float]:
        if "bertscore" not in loaded:
            chosen = settings.evaluation
            own = chosen.bertscore == "expert"
            states = BackboneStates(gag.experts.backbone) if own else TransformerStates(
                chosen.bertscore, chosen.bertscore_layer, root)  # fmt: skip
            loaded["bertscore"] = BertScorer(states)
        return loaded["bertscore"].score(answers, golds)

    def similarity(answers: Sequence[str], golds: Sequence[tuple[str, ...]]) -> list[float]:
        if "similarity" not in loaded:
            name = settings.evaluation.similarity
            encoder = EncoderSettings(kind="sentence-transformers", model=name) if name != "expert" else None
            own = settings.router.model_copy(update={"encoder": encoder, "max_tokens": 512})
            loaded["similarity"] = gag.sentence_encoder() if encoder is None else SentenceEncoder(own, root)
        return sentence_similarity(loaded["similarity"], answers, golds)

    return {
        "contains": each(metrics.contains), "exact": each(metrics.exact), "f1": each(metrics.f1),
        "bertscore": bertscore, "similarity": similarity,
    }  # fmt: skip


def summarise(
    rows: list[Asked], answers: list[dict[str, Any]], score: dict[str, Any], project: Project
) -> dict[str, Any]:
    """Score both routes by data set; rows without a gold answer are counted and left out."""
    chosen = project.settings.evaluation
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.answers:
            groups.setdefault(row.dataset, []).append(i)
    if not groups:
        raise DataError('no row has a gold "answer": there is nothing to score')
    datasets = {}
    for dataset, members in groups.items():
        golds = [rows[i].answers for i in members]
        names = chosen.of(dataset, rows[members[0]].domain)
        datasets[dataset] = {"questions": len(members)} | {
            way: {
                metric: _mean(score[metric]([str(answers[i][way]) for i in members], golds))
                for metric in names
            }
            for way in ("routed", "oracle")
            if all(answers[i][way] is not None for i in members)
        }
    known = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row.domain is not None]
    used = [answer["support"] for answer in answers if answer.get("support") is not None]
    return {
        "questions": len(rows),
        "without_gold": sum(not row.answers for row in rows),
        "datasets": datasets,
        "routing": round(float(np.mean([a["route"] == _belongs(r, project) for r, a in known])), 4)
        if known
        else None,
        "tokens_added": round(float(np.mean([answer["tokens_added"] for answer in answers])), 2),
        "support": _quantiles(used) if used else None,
        "metrics": {"bertscore": chosen.bertscore, "similarity": chosen.similarity},
    }


def evaluation_lines(summary: dict[str, Any]) -> list[str]:
    """Say the main figures to a terminal."""
    lines = [
        f"{'data set':<22}{'questions':>10}  {'metric':<11}{'routed':>8}{'oracle':>8}   95 % interval, routed"
    ]
    for name, found in summary["datasets"].items():
        for metric, value in found["routed"].items():
            oracle = found.get("oracle", {}).get(metric)
            low, high = value["interval"]
            shown = f"{oracle['mean']:>8.3f}" if oracle else f"{'-':>8}"
            lines.append(
                f"{name:<22}{found['questions']:>10}  {metric:<11}{value['mean']:>8.3f}{shown}   {low:.3f} to {high:.3f}"
            )
    if summary["routing"] is not None:
        lines.append(f"routed right: {summary['routing']:.4f}")
    if summary["without_gold"]:
        lines.append(f"{summary['without_gold']} rows have no gold answer and are left out")
    if summary["support"]:
        spread = "  ".join(f"{name} {value:+.2f}" for name, value in summary["support"].items())
        lines.append(f"how much likelier the vectors make an answer, log per token: {spread}")
    return lines


def _answer(gag: GAG, batch: list[Asked], evidence: bool) -> list[dict[str, Any]]:
    questions = [row.question for row in batch]
    routes = gag.route(questions)
    wanted = [_belongs(row, gag.project) for row in batch]
    texts: dict[tuple[int, str], Any] = {}
    asked = {(i, route.domain) for i, route in enumerate(routes)} | {
        (i, d) for i, d in enumerate(wanted) if d is not None
    }
    for domain in sorted({domain for _, domain in asked}):
        chosen = sorted(i for i, d in asked if d == domain)
        texts |= {
            (i, domain): a
            for i, a in zip(chosen, gag.ask([questions[i] for i in chosen], domain), strict=True)
        }
    supports = (
        _supports(gag, questions, [texts[i, r.domain] for i, r in enumerate(routes)]) if evidence else {}
    )
    found = []
    for i, (row, route, domain) in enumerate(zip(batch, routes, wanted, strict=True)):
        routed = texts[i, route.domain]
        found.append({
            "id": row.id, "question": row.question, "route": route.domain, "score": round(route.score, 4),
            "routed": routed.text, "oracle": texts[i, domain].text if domain is not None else None,
            "tokens_added": routed.tokens_added, "background": routed.background, "gold": list(row.answers),
        } | ({"support": supports.get(i)} if evidence else {}))  # fmt: skip
    return found


def _supports(gag: GAG, questions: list[str], answers: list[Any]) -> dict[int, float | None]:
    """Weigh each specialist's answer against null vectors."""
    found: dict[int, float | None] = {}
    for domain in {answer.route.domain for answer in answers} - {GENERAL}:
        chosen = [i for i, answer in enumerate(answers) if answer.route.domain == domain]
        asked = [questions[i] for i in chosen]
        known = gag.know(asked, domain)
        found |= zip(
            chosen, support(gag, asked, [answers[i].text for i in chosen], domain, known), strict=True
        )
    return found


def _belongs(row: Asked, project: Project) -> str | None:
    """Return the route that is right for a row: its domain if it is present, else general."""
    if row.domain is None:
        return None
    return row.domain if row.domain in project.present() else GENERAL


def _done(file: Path) -> dict[str, dict[str, Any]]:
    """Read the answers that stand whole; a line that a kill cut short is dropped."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        fresh = file.with_name(f".{file.name}")
        fresh.write_text(whole, encoding="utf-8")
        fresh.rename(file)
    return {answer["id"]: answer for answer in (json.loads(line) for line in whole.split("\n") if line)}


def _inputs(project: Project, rows: list[Asked], evidence: bool) -> dict[str, Any]:
    """Name what the answers come of: a run with other inputs is another run."""
    manifests = {name: read_manifest(project.domain(name), DOMAIN_MANIFEST) for name in project.present()}
    return {
        "rows": stage_key(rows=[(row.id, row.question, row.answers, row.domain) for row in rows]),
        "base": model_key(project.settings.base, project.root) | {"dtype": project.settings.base.dtype},
        "domains": {name: stage_key(manifest=content) for name, content in manifests.items()},
        "general": stage_key(manifest=read_manifest(project.general)),
        "calibration": digest(project.calibration) if project.calibration.is_file() else None,
        "router": project.settings.router.model_dump(mode="json", exclude={"batch_size"}),
        "decoding": project.settings.decoding.max_new_tokens,
        "evidence": evidence,
    }


def _mean(values: list[float]) -> dict[str, Any]:
    return {"mean": round(float(np.mean(values)), 4), "interval": interval(values)}


def _quantiles(values: list[float]) -> dict[str, float]:
    ends = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        name: round(float(v), 3) for name, v in zip(("p5", "p25", "p50", "p75", "p95"), ends, strict=True)
    }

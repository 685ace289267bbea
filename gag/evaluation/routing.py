"""Judge a router on questions whose domain is known: accuracy, confusion, abstention, novelty, latency."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gag.errors import DataError
from gag.evaluation.intervals import grouped_interval, interval
from gag.evaluation.labelled import Asked
from gag.evaluation.page import Page, heatmap
from gag.project.artifacts import write_json
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.query_encoder import QueryEncoder
from gag.routing.bank import Bank
from gag.routing.building import build_bank, encode_questions
from gag.routing.router import Router, Verdict

BINS = 15
UNKNOWN = "(no domain here)"


def banks_of(rows: Sequence[Asked], encoder: QueryEncoder, settings: RouterSettings) -> dict[str, Bank]:
    """Make banks in memory from questions whose domain is known."""
    by_domain: dict[str, dict[str, str]] = {}
    for row in rows:
        by_domain.setdefault(str(row.domain), {}).setdefault(
            row.question, str(row.row.get("group") or row.question)
        )
    if GENERAL not in by_domain:
        raise DataError("no row belongs to general; the router needs some, with domain general")
    made = {}
    for name, questions in by_domain.items():
        made[name] = build_bank(encode_questions(questions, encoder, settings), encoder.spec, settings)
    return made


def evaluate_routing(router: Router, rows: Sequence[Asked], settings: RouterSettings) -> dict[str, Any]:
    """Route every row and compare with its domain; one whose domain is not present belongs to general."""
    vectors = router.encoder.encode([row.question for row in rows])  # [B, Dq]
    verdict = router.judge(vectors)
    names = router.names
    truth = np.array([names.index(str(row.domain)) if row.domain in names else -1 for row in rows])
    chosen = verdict.chosen.numpy()
    right = chosen == np.where(truth < 0, 0, truth)
    known = truth >= 0
    if not known.any():
        raise DataError(
            f"no row belongs to a domain that is present ({', '.join(names)}); check their domains or labels"
        )
    sure = verdict.scores[torch.from_numpy(known)]
    groups = {name: right[truth == i].tolist() for i, name in enumerate(names) if (truth == i).any()}
    specialists, general = truth > 0, truth == 0
    counts = Counter(zip(truth.tolist(), chosen.tolist(), strict=True))
    return {
        "questions": len(rows), "of_present_domains": int(known.sum()),
        "rule": router.rule,
        "accuracy": {
            "total": _share(right),
            "micro": _share(right[known]), "micro_interval": interval(right[known].tolist()),
            "macro": round(float(np.mean([np.mean(g) for g in groups.values()])), 4),
            "macro_interval": grouped_interval(list(groups.values())),
        },
        "domains": {name: _domain(name, i, truth, chosen, right) for i, name in enumerate(names) if name in groups},
        "confusion": {
            (names[i] if i >= 0 else UNKNOWN): {guess: counts[i, j] for j, guess in enumerate(names)}
            for i in sorted(set(truth.tolist()), key=lambda i: (i < 0, i))
        },
        "abstention": {
            "alpha": router.calibration.alpha if router.calibration else None,
            "promised_risk": router.calibration.reached if router.calibration else None,
            "risk": _share(chosen[general] > 0) if general.any() else None,
            "coverage": _share(chosen[specialists] > 0) if specialists.any() else None,
        },
        "calibration_error": _calibration_error(sure, truth[known]) if router.calibration else None,
        "out_of_distribution": _out_of_distribution(router, vectors, truth, verdict, settings),
        "latency_ms": _latency(router, [row.question for row in rows]),
        "calibration": asdict(router.calibration) if router.calibration else {"warning": router.warning},
        "duplicates": duplicates(router),
    }  # fmt: skip


def duplicates(router: Router) -> dict[str, int]:
    """Count the held-out questions that two domains share: they can be routed right for one of them only."""
    found = {}
    for i, left in enumerate(router.banks):
        for j in range(i):
            same = (
                (left.held_out @ router.banks[j].held_out.T > 1 - 1e-6).any(1).sum()
                if len(left.held_out)
                else 0
            )
            if same:
                found[f"{router.names[j]} and {router.names[i]}"] = int(same)
    return found


def write_routing(folder: Path, figures: dict[str, Any], title: str) -> Path:
    """Write routing.json and the page routing.html; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "routing.json", figures)
    page = Page(title)
    accuracy, held = figures["accuracy"], figures["abstention"]
    low, high = accuracy["micro_interval"]
    page.text(
        f"{accuracy['micro']:.1%} of {figures['of_present_domains']} questions go where they belong (95 % interval "
        f"{low:.1%} to {high:.1%}), by the rule {figures['rule']}." + _abstention(held), "verdict",
    )  # fmt: skip
    page.heading("Where questions go")
    rows = list(figures["confusion"])
    columns = list(next(iter(figures["confusion"].values())))
    counts = [[figures["confusion"][row][column] for column in columns] for row in rows]
    page.figure(heatmap(counts, rows, columns, ("belongs to", "routed to")), "Questions by domain and route")
    page.table(
        ["domain", "questions", "recall", "95 % interval", "precision"],
        [[n, d["questions"], d["recall"], f"{d['interval'][0]:.3f} to {d['interval'][1]:.3f}", d["precision"]]
         for n, d in figures["domains"].items()],
    )  # fmt: skip
    page.table(
        ["accuracy", "share", "95 % interval"],
        [["total, others to general", accuracy["total"], None]]
        + [
            [k, accuracy[k], "{:.3f} to {:.3f}".format(*accuracy[f"{k}_interval"])]
            for k in ("micro", "macro")
        ],
    )
    if figures["out_of_distribution"]:
        page.heading("Questions of no domain here")
        page.text(
            "Each domain is left out in turn, and its questions are asked: do they end in general?", "note"
        )
        page.table(
            ["left out", "questions", "to general", "AUROC of the distance"],
            [
                [n, s["questions"], s["to_general"], s["auroc"]]
                for n, s in figures["out_of_distribution"].items()
            ],
        )
    page.heading("Time")
    page.table(
        ["questions together", "p50 ms", "p99 ms"],
        [[n, t["p50"], t["p99"]] for n, t in figures["latency_ms"].items()],
    )
    for pair, count in figures["duplicates"].items():
        page.text(f"{pair} share {count} of the questions held out.", "note")
    page.facts("Calibration", figures["calibration"] | {"calibration_error": figures["calibration_error"]})
    page.save(folder / "routing.html")
    return folder / "routing.html"


def routing_lines(figures: dict[str, Any]) -> list[str]:
    """Say the main figures to a terminal."""
    accuracy, low, high = figures["accuracy"], *figures["accuracy"]["micro_interval"]
    lines = [
        f"micro {accuracy['micro']:.4f} ({low:.4f} to {high:.4f})  macro {accuracy['macro']:.4f}  rule {figures['rule']}"
    ]
    lines += [f"{'':<18}{'recall':>8}{'precision':>11}{'questions':>11}"]
    for name, domain in figures["domains"].items():
        precision = f"{domain['precision']:.4f}" if domain["precision"] is not None else "-"
        lines.append(f"{name:<18}{domain['recall']:>8.4f}{precision:>11}{domain['questions']:>11}")
    lines.append(_abstention(figures["abstention"]).strip())
    for name, outside in figures["out_of_distribution"].items():
        lines.append(
            f"out of distribution, {name}: {outside['to_general']:.3f} end in general, AUROC {_number(outside['auroc'])}"
        )
    lines += [
        f"{pair} share {count} of the questions held out" for pair, count in figures["duplicates"].items()
    ]
    times = "; ".join(f"{n}: {t['p50']:.1f} and {t['p99']:.1f}" for n, t in figures["latency_ms"].items())
    return [line for line in [*lines, f"ms for a batch, p50 and p99: {times}"] if line]


def _abstention(held: dict[str, Any]) -> str:
    parts = []
    if held["risk"] is not None:
        promised = (
            f" (promised: at most {held['promised_risk']:.1%})" if held["promised_risk"] is not None else ""
        )
        parts.append(f" {held['risk']:.1%} of general questions go to specialists{promised}")
    if held["coverage"] is not None:
        parts.append(f" {held['coverage']:.1%} of specialist questions reach a specialist")
    return ";".join(parts) + "." if parts else ""


def _domain(name: str, i: int, truth: np.ndarray, chosen: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    own = right[truth == i]
    taken = (chosen == i) & (truth >= 0)
    return {
        "questions": int((truth == i).sum()), "recall": _share(own), "interval": interval(own.tolist()),
        "precision": _share(truth[taken] == i) if taken.any() else None,
    }  # fmt: skip


def _calibration_error(scores: torch.Tensor, truth: np.ndarray) -> float:
    """Return the expected calibration error of the most likely domain's probability, in 15 equal bins."""
    best = scores.softmax(1).max(1)
    sure, hit = best.values.numpy(), best.indices.numpy() == truth
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    error = sum(
        abs(sure[bins == b].mean() - hit[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())
    )
    return round(float(error), 4)


def _out_of_distribution(
    router: Router, vectors: torch.Tensor, truth: np.ndarray, verdict: Verdict, settings: RouterSettings
) -> dict[str, Any]:
    """Leave each specialist out in turn, and its questions, or those of domains not here, are out of distribution."""
    found = {}
    if (truth < 0).any():
        found[UNKNOWN] = _told_apart(verdict, truth < 0, truth >= 0)
    for i, name in enumerate(router.names):
        if i == 0 or not (truth == i).any() or len(router.names) < 3 or not router.calibration:
            continue
        others = {n: bank for n, bank in zip(router.names, router.banks, strict=True) if n != name}
        without = Router(
            others, router.encoder, settings.model_copy(update={"alpha": router.calibration.alpha})
        )
        found[name] = _told_apart(without.judge(vectors), truth == i, (truth >= 0) & (truth != i))
    return found


def _told_apart(verdict: Verdict, out_of_distribution: np.ndarray, installed: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    auroc = None
    if verdict.distances is not None and out_of_distribution.any() and installed.any():
        both = out_of_distribution | installed
        auroc = round(float(roc_auc_score(out_of_distribution[both], verdict.distances.numpy()[both])), 4)
    to_general = _share(verdict.chosen.numpy()[out_of_distribution] == 0)
    return {"questions": int(out_of_distribution.sum()), "to_general": to_general, "auroc": auroc}


def _latency(router: Router, questions: list[str]) -> dict[str, dict[str, float]]:
    """Time whole routes, encoding included, in batches of 1 and 64."""
    found = {}
    for size, rounds in ((1, 60), (64, 12)):
        seconds = []
        for turn in range(rounds + 2):
            batch = [questions[(turn * size + i) % len(questions)] for i in range(size)]
            started = time.perf_counter()
            router.route(batch)
            seconds.append(time.perf_counter() - started)
        p50, p99 = np.quantile(seconds[2:], [0.5, 0.99]) * 1000
        found[str(size)] = {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
    return found


def _share(values: np.ndarray) -> float:
    return round(float(np.mean(values)), 4)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

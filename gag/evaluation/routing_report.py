"""A router's figures for people: routing.json, a page, and the lines of a terminal."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gag.evaluation.intervals import Interval
from gag.evaluation.page import COLOURS, Page, canvas, heatmap
from gag.evaluation.routing import Abstention, RoutingFigures
from gag.project.artifacts import write_json
from gag.routing.calibration import Calibration, Curve


def write_routing(folder: Path, figures: RoutingFigures, title: str) -> Path:
    """Write routing.json and the page routing.html; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "routing.json", asdict(figures))
    page = Page(title)
    low, high = figures.accuracy.micro_interval
    page.text(
        f"{figures.accuracy.micro:.1%} of {figures.of_present_domains} questions go where they belong "
        f"(95 % interval {low:.1%} to {high:.1%}), by the rule {figures.rule}."
        + _abstention(figures.abstention),
        "verdict",
    )
    _add_routes(page, figures)
    if isinstance(figures.calibration, Calibration):
        _add_promises(page, figures.calibration, figures.abstention)
    if figures.out_of_distribution:
        _add_out_of_distribution(page, figures)
    _add_time(page, figures)
    for pair, count in figures.duplicates.items():
        page.text(f"{pair} share {count} questions.", "note")
    calibration = asdict(figures.calibration) | {"calibration_error": figures.calibration_error}
    page.facts("Calibration", calibration)
    page.save(folder / "routing.html")
    return folder / "routing.html"


def routing_lines(figures: RoutingFigures) -> list[str]:
    """Say the main figures to a terminal."""
    accuracy, (low, high) = figures.accuracy, figures.accuracy.micro_interval
    lines = [
        f"micro {accuracy.micro:.4f} ({low:.4f} to {high:.4f})  macro {accuracy.macro:.4f}  "
        f"rule {figures.rule}",
        f"{'':<18}{'recall':>8}{'precision':>11}{'questions':>11}",
    ]
    for name, domain in figures.domains.items():
        precision = f"{domain.precision:.4f}" if domain.precision is not None else "-"
        lines.append(f"{name:<18}{domain.recall:>8.4f}{precision:>11}{domain.questions:>11}")
    lines.append(_abstention(figures.abstention).strip())
    for name, found in figures.out_of_distribution.items():
        auroc = "-" if found.auroc is None else f"{found.auroc:.3f}"
        lines.append(f"out of distribution, {name}: {found.to_general:.3f} end in general, AUROC {auroc}")
    lines += [f"{pair} share {count} questions" for pair, count in figures.duplicates.items()]
    times = "; ".join(f"{size}: {t.p50:.1f} and {t.p99:.1f}" for size, t in figures.latency_ms.items())
    return [line for line in [*lines, f"ms for a batch, p50 and p99: {times}"] if line]


def _add_routes(page: Page, figures: RoutingFigures) -> None:
    page.heading("Where questions go")
    rows, columns = list(figures.confusion), list(next(iter(figures.confusion.values())))
    counts = [list(routes.values()) for routes in figures.confusion.values()]
    page.figure(heatmap(counts, rows, columns, ("belongs to", "routed to")), "Questions by domain and route")
    page.table(
        ["domain", "questions", "recall", "95 % interval", "precision"],
        [
            [name, d.questions, d.recall, _ends(d.interval), d.precision]
            for name, d in figures.domains.items()
        ],
    )
    accuracy = figures.accuracy
    page.table(
        ["accuracy", "share", "95 % interval"],
        [
            ["total, others to general", accuracy.total, None],
            ["micro", accuracy.micro, _ends(accuracy.micro_interval)],
            ["macro", accuracy.macro, _ends(accuracy.macro_interval)],
        ],
    )


def _add_promises(page: Page, made: Calibration, held: Abstention) -> None:
    """Draw what each promise costs, and where this router stands."""
    page.heading("Risk against coverage")
    curve = made.curve
    named: dict[tuple[float, float], list[str]] = {}  # several alphas may come to one point
    for alpha, risk, least in zip(curve.alpha, curve.risk, curve.least, strict=True):
        named.setdefault((risk, least), []).append(f"{alpha:.1%}" + " (kept)" * (alpha == made.alpha))
    if len(named) > 1:
        page.figure(
            _promises(curve, named, held),
            "What each router.alpha would give on the banks' own questions, judged unseen",
        )
    else:
        page.text(
            f"Every router.alpha from {curve.alpha[0]:.1%} to {curve.alpha[-1]:.1%} gives the same on the "
            f"banks' own questions, unseen: {curve.risk[0]:.1%} of general questions go to specialists, "
            f"and {curve.least[0]:.1%} of the worst specialist's questions reach one.",
            "note",
        )
    page.table(
        ["specialist", "margin over general", "reached, judged unseen", "questions judged"],
        [
            [name, margin, made.coverage[name] if made.questions[name] else None, made.questions[name]]
            for name, margin in made.margins.items()
        ],
    )
    for note in made.notes:
        page.text(note, "note")


def _promises(curve: Curve, named: dict[tuple[float, float], list[str]], held: Abstention) -> Any:
    """Draw risk against coverage; points have the names of their alphas."""
    figure, axes = canvas()
    axes.plot(curve.risk, curve.coverage, marker="o", color=COLOURS[0], label="specialists, mean")
    axes.plot(curve.risk, curve.least, marker="o", color=COLOURS[1], label="the worst specialist")
    for point, alphas in named.items():
        label = alphas[0] if len(alphas) == 1 else f"{alphas[0]} to {alphas[-1]}"
        axes.annotate(label, point, (4, -11), textcoords="offset points", fontsize=7)
    if held.risk is not None and held.coverage is not None:
        axes.plot(
            held.risk, held.coverage, "*", color=COLOURS[2], markersize=12, label="here, on these questions"
        )
    axes.margins(0.12, 0.06)
    axes.set_xlabel("share of general questions at specialists", fontsize=9)
    axes.set_ylabel("share of their questions that reach one", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _add_out_of_distribution(page: Page, figures: RoutingFigures) -> None:
    page.heading("Questions of no domain here")
    page.text("Each domain is left out in turn, and its questions are asked: do they end in general?", "note")
    page.table(
        ["left out", "questions", "to general", "AUROC of the distance"],
        [
            [name, found.questions, found.to_general, found.auroc]
            for name, found in figures.out_of_distribution.items()
        ],
    )


def _add_time(page: Page, figures: RoutingFigures) -> None:
    page.heading("Time")
    page.table(
        ["questions together", "p50 ms", "p99 ms"],
        [[size, time.p50, time.p99] for size, time in figures.latency_ms.items()],
    )


def _abstention(held: Abstention) -> str:
    """Say how many questions abstention keeps in general, and what it promises."""
    parts = []
    if held.risk is not None:
        promise = held.promised_risk
        promised = "" if promise is None else f" (promised: at most {promise:.1%})"
        parts.append(f" {held.risk:.1%} of general questions go to specialists{promised}")
    if held.coverage is not None:
        parts.append(f" {held.coverage:.1%} of specialist questions reach a specialist")
    return ";".join(parts) + "." if parts else ""


def _ends(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"

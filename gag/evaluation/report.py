"""The comparison for people: a page with verdict, table, charts, slices and worst answers, and lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gag.evaluation.comparison import Comparison, MethodFigures, kind_of
from gag.evaluation.costs import Resident
from gag.evaluation.intervals import Interval
from gag.evaluation.methods import CONTROLS, RETRIEVAL
from gag.evaluation.page import COLOURS, Page, canvas

REPORT = "report.html"
MARKERS = "os^"  # colours come again with another shape
LEGEND = (
    "on the same questions, base and decoding. In context: share of questions whose gold stands in the "
    "text that the method adds to the prompt. Tokens: how many it adds. General: share of general "
    "questions answered right where the method meets them; GAG has its router, all others are always on. "
    "Forced: the same with GAG's vectors always on. "
    "Build MB: the most memory that the process held in the heaviest stage, as its manifest records it. A "
    "lead whose interval holds 0 is no difference."
)


def write_report(folder: Path, found: Comparison) -> Path:
    """Write report.html and return its path."""
    page = Page(f"{found.domain}: GAG and other methods on the same {found.questions} questions")
    page.text(verdict(found), "verdict")
    _add_methods(page, found)
    _add_charts(page, found)
    if found.slices:
        _add_slices(page, found)
    if found.worst:
        page.heading("GAG's worst answers")
        columns = ["question", "gold", *found.worst[0].answers]
        page.table(columns, [[w.question, w.gold, *w.answers.values()] for w in found.worst], words=True)
    page.heading("Made from")
    page.facts("Settings and hashes", found.facts.as_json())
    page.save(folder / REPORT)
    return folder / REPORT


def verdict(found: Comparison) -> str:
    """Say the outcome in a sentence or two."""
    methods = found.methods
    if "gag" not in methods:
        return f"{len(methods)} methods on {found.questions} questions; GAG was not among them."
    ours, tokens = methods["gag"].quality, methods["gag"].tokens_added
    parts = [f"With {tokens:.0f} added token{'s' if tokens != 1 else ''}, GAG scores {ours:.2f}"]
    if "base" in methods:
        parts.append(f"the base alone {methods['base'].quality:.2f}")
    if best := best_retrieval(_qualities(found)):
        parts.append(f"the best retrieval ({methods[best].label}) {_with_tokens(methods[best])}")
    if "text" in methods:
        parts.append(f"the expert's text {_with_tokens(methods['text'])}")
    return "; ".join(parts) + "." + _control_verdict(found)


def best_retrieval(qualities: dict[str, float]) -> str | None:
    """Name the best retrieval at its best number of passages, by qualities over all questions or a slice."""
    retrieval = [name for name in qualities if kind_of(name) in RETRIEVAL]
    return max(retrieval, key=lambda name: qualities[name], default=None)


def slice_verdicts(found: Comparison) -> list[str]:
    """Say for each slice whether retrieval or the vector wins."""
    lines = []
    for name, figures in found.slices.items():
        best = best_retrieval(figures.quality)
        if best is None or "gag" not in figures.quality:
            continue
        label = found.methods[best].label
        ours, theirs = figures.quality["gag"], figures.quality[best]
        who = "the vector wins" if ours > theirs else "retrieval wins" if theirs > ours else "they are even"
        held = figures.in_context.get(best)
        context = f", whose passages hold {held:.2f} of the answers" if held is not None else ""
        lines.append(f"{name}: {who} (GAG {ours:.2f}, {label} {theirs:.2f}{context}).")
    return lines


def compare_lines(found: Comparison) -> list[str]:
    """Say the comparison to a terminal."""
    header = f"{'method':<34}{found.metric:>10}{'95 % interval':>18}{'general':>9}{'forced':>8}"
    lines = [header + f"{'tokens':>8}{'build s':>9}{'ttft ms':>9}"]
    for figures in found.methods.values():
        general = f"{figures.general:.3f}" if figures.general is not None else "-"
        forced = f"{figures.general_forced:.3f}" if figures.general_forced is not None else "-"
        build = f"{figures.build_seconds:.0f}" if figures.build_seconds is not None else "-"
        lines.append(
            f"{figures.label:<34}{figures.quality:>10.3f}{_ends(figures.interval):>18}{general:>9}{forced:>8}"
            f"{figures.tokens_added:>8.1f}{build:>9}{figures.first_token_ms:>9.1f}"
        )
    return [*lines, *slice_verdicts(found), verdict(found)]


def _add_methods(page: Page, found: Comparison) -> None:
    page.heading("Methods")
    names = list(found.methods)
    header = ["method", found.metric, "95 % interval", "in context", "tokens", "general",
              "forced", "first token ms", "each token ms", "build s", "build MB", "disk MB",
              "GAG leads by"]  # fmt: skip
    rows = [_cells(figures) for figures in found.methods.values()]
    page.table(header, rows, names.index("gag") if "gag" in names else None)
    page.text(f"Quality is {found.metric}, 0 to 1, {LEGEND}", "note")


def _add_charts(page: Page, found: Comparison) -> None:
    page.heading("Quality against cost")
    page.figure(
        _scatter(found, lambda figures: figures.tokens_added, "tokens added to the prompt"),
        "Quality against added tokens",
    )
    page.figure(
        _scatter(found, lambda figures: figures.first_token_ms, "ms to the first token"),
        "Quality against time to the first token",
    )
    page.figure(_memory(found.memory), "Memory against number of domains")


def _add_slices(page: Page, found: Comparison) -> None:
    page.heading("Where each method wins")
    columns = _slice_columns(found)
    page.table(
        ["questions", "number", *(found.methods[name].label for name in columns)],
        [[name, s.questions, *(s.quality[method] for method in columns)] for name, s in found.slices.items()],
    )
    for line in slice_verdicts(found):
        page.text(line)


def _control_verdict(found: Comparison) -> str:
    """Say whether GAG leads every control: only then is it the vector's content that helps."""
    controls = [found.methods[name] for name in CONTROLS if name in found.methods]
    if not controls:
        return ""
    leads = [control.gag_leads_by for control in controls]
    carries = all(lead is not None and lead.interval.low > 0 for lead in leads)
    said = "The vector carries knowledge" if carries else "It is not shown that the vector carries knowledge"
    most = max(control.quality for control in controls)
    return f" {said}: with a wrong or an empty one the score is {most:.2f} at most."


def _qualities(found: Comparison) -> dict[str, float]:
    return {name: figures.quality for name, figures in found.methods.items()}


def _with_tokens(figures: MethodFigures) -> str:
    return f"{figures.quality:.2f} with {figures.tokens_added:.0f} tokens"


def _ends(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _cells(figures: MethodFigures) -> list[Any]:
    lead = figures.gag_leads_by
    led = f"{lead.mean:+.2f} ({lead.interval.low:+.2f} to {lead.interval.high:+.2f})" if lead else None
    each = None if figures.per_token_ms is None else f"{figures.per_token_ms:.1f}"
    built = None if figures.build_seconds is None else f"{figures.build_seconds:.0f}"
    return [figures.label, figures.quality, _ends(figures.interval), figures.in_context,
            f"{figures.tokens_added:.0f}", figures.general, figures.general_forced,
            f"{figures.first_token_ms:.0f}", each, built, figures.build_mb, figures.disk_mb, led]  # fmt: skip


def _slice_columns(found: Comparison) -> list[str]:
    """Choose the columns of the slices: of each kind of retrieval, its best number of passages stands."""
    names = [name for name in found.methods if kind_of(name) not in RETRIEVAL]
    for kind in RETRIEVAL:
        same = [name for name in found.methods if kind_of(name) == kind]
        if same:
            names.append(max(same, key=lambda name: found.methods[name].quality))
    return names


def _scatter(found: Comparison, cost: Callable[[MethodFigures], float], label: str) -> Any:
    """Draw quality against a cost; retrieval at its numbers of passages is one line."""
    figure, axes = canvas()
    kinds: dict[str, list[MethodFigures]] = {}
    for name, figures in found.methods.items():
        kinds.setdefault(kind_of(name), []).append(figures)
    for i, members in enumerate(kinds.values()):
        legend = members[0].label.partition(" top ")[0]
        ours = legend == "GAG"
        marker = "*" if ours else MARKERS[i // len(COLOURS) % len(MARKERS)]
        axes.plot([cost(m) for m in members], [m.quality for m in members], marker=marker, label=legend,
                  markersize=13 if ours else 5, linewidth=1, color=COLOURS[i % len(COLOURS)],
                  linestyle="-" if len(members) > 1 else "none", zorder=3 if ours else 2)  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel(found.metric)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(-0.3, 1.3 * max(cost(figures) for figures in found.methods.values()))
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    figure.set_size_inches(5.2, 4.8)
    return figure


def _memory(memory: Resident) -> Any:
    figure, axes = canvas()
    for i, (name, line) in enumerate(memory.mb.items()):
        axes.plot(memory.domains, line, marker="o", markersize=4, label=name, color=COLOURS[i % len(COLOURS)])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(memory.domains, [str(n) for n in memory.domains])
    axes.set_xlabel("domains")
    axes.set_ylabel("MB of weights and indexes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure

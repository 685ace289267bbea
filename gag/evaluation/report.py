"""The comparison as a page: a verdict, a table, three charts, the slices, the worst answers, and what it was made from."""

from pathlib import Path
from typing import Any

from gag.evaluation.methods import RETRIEVAL
from gag.evaluation.page import COLOURS, Page, canvas

REPORT = "report.html"


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    """Write report.html."""
    page = Page(f"{result['domain']}: GAG and other methods on the same {result['questions']} questions")
    page.text(verdict(result), "verdict")
    page.heading("Methods")
    names = list(result["methods"])
    rows = [_cells(result["methods"][name]) for name in names]
    header = ["method", result["metric"], "95 % interval", "in context", "tokens", "general", "first token ms",
              "each token ms", "build s", "build MB", "disk MB", "GAG leads by"]  # fmt: skip
    page.table(header, rows, names.index("gag") if "gag" in names else None)
    page.text(
        f"Quality is {result['metric']}, 0 to 1, on the same questions, base and decoding. In context: share of questions "
        "whose gold stands in the text that the method adds to the prompt. Tokens: how many it adds. General: share of general "
        "questions answered right where the method meets them; GAG has its router, all others are always on. Build MB: the "
        "peak of the heaviest stage, as `gag plan` counts it. A lead whose interval holds 0 is no difference.", "note",
    )  # fmt: skip
    page.heading("Quality against cost")
    page.figure(
        _scatter(result, "tokens_added", "tokens added to the prompt"), "Quality against added tokens"
    )
    page.figure(
        _scatter(result, "first_token_ms", "ms to the first token"), "Quality against time to the first token"
    )
    page.figure(_memory(result["memory"]), "Memory against number of domains")
    if result["slices"]:
        page.heading("Where each method wins")
        best = _shown(result)
        page.table(
            ["questions", "number", *(result["methods"][name]["label"] for name in best)],
            [[name, s["questions"], *(s[way] for way in best)] for name, s in result["slices"].items()],
        )
        for line in slice_verdicts(result):
            page.text(line)
    if result["worst"]:
        page.heading("GAG's worst answers")
        columns = list(result["worst"][0])
        page.table(columns, [[row[c] for c in columns] for row in result["worst"]], words=True)
    page.heading("Made from")
    page.facts("Settings and hashes", result["facts"])
    page.save(folder / REPORT)
    return folder / REPORT


def verdict(result: dict[str, Any]) -> str:
    """Say the outcome in a sentence or two."""
    methods = result["methods"]
    if "gag" not in methods:
        return f"{len(methods)} methods on {result['questions']} questions; GAG was not among them."
    ours, tokens = methods["gag"]["quality"], methods["gag"]["tokens_added"]
    parts = [f"With {tokens:.0f} added token{'s' if tokens != 1 else ''}, GAG scores {ours:.2f}"]
    if "base" in methods:
        parts.append(f"the base alone {methods['base']['quality']:.2f}")
    best = best_retrieval(result)
    if best:
        parts.append(f"the best retrieval ({methods[best]['label']}) {methods[best]['quality']:.2f} "
                     f"with {methods[best]['tokens_added']:.0f} tokens")  # fmt: skip
    if "text" in methods:
        parts.append(
            f"the expert's text {methods['text']['quality']:.2f} with {methods['text']['tokens_added']:.0f} tokens"
        )
    said = "; ".join(parts) + "."
    controls = [methods[name] for name in ("shuffled", "zero", "other") if name in methods]
    if controls:
        shown = all(control["gag_leads_by"]["interval"][0] > 0 for control in controls)
        used = (
            "The vector carries knowledge" if shown else "It is not shown that the vector carries knowledge"
        )
        said += f" {used}: with a wrong or an empty one the score is {max(c['quality'] for c in controls):.2f} at most."
    return said


def best_retrieval(result: dict[str, Any], scores: dict[str, Any] | None = None) -> str | None:
    """Name the best retrieval method at its best number of passages, over all questions or a slice."""
    chosen = scores or {name: figures["quality"] for name, figures in result["methods"].items()}
    found = [name for name in chosen if name.split("-")[0] in RETRIEVAL]
    return max(found, key=lambda name: chosen[name]) if found else None


def slice_verdicts(result: dict[str, Any]) -> list[str]:
    """Say for each slice whether retrieval or the vector wins."""
    lines = []
    for name, scores in result["slices"].items():
        best = best_retrieval(result, scores)
        if best is None or "gag" not in scores:
            continue
        label = result["methods"][best]["label"]
        ours, theirs = scores["gag"], scores[best]
        who = "the vector wins" if ours > theirs else "retrieval wins" if theirs > ours else "they are even"
        held = result["contexts"].get(name, {}).get(best)
        found = f", whose passages hold {held:.2f} of the answers" if held is not None else ""
        lines.append(f"{name}: {who} (GAG {ours:.2f}, {label} {theirs:.2f}{found}).")
    return lines


def compare_lines(result: dict[str, Any]) -> list[str]:
    """Say the comparison to a terminal."""
    lines = [
        f"{'method':<34}{result['metric']:>10}{'95 % interval':>18}{'general':>9}{'tokens':>8}{'build s':>9}{'ttft ms':>9}"
    ]
    for figures in result["methods"].values():
        low, high = figures["interval"]
        general = f"{figures['general']:.3f}" if figures["general"] is not None else "-"
        build = f"{figures['build_seconds']:.0f}" if figures["build_seconds"] is not None else "-"
        lines.append(
            f"{figures['label']:<34}{figures['quality']:>10.3f}{f'{low:.3f} to {high:.3f}':>18}{general:>9}"
            f"{figures['tokens_added']:>8.1f}{build:>9}{figures['first_token_ms']:>9.1f}"
        )
    return [*lines, *slice_verdicts(result), verdict(result)]


def _cells(figures: dict[str, Any]) -> list[Any]:
    low, high = figures["interval"]
    lead = figures.get("gag_leads_by")
    led = f"{lead['mean']:+.2f} ({lead['interval'][0]:+.2f} to {lead['interval'][1]:+.2f})" if lead else None
    each = None if figures["per_token_ms"] is None else f"{figures['per_token_ms']:.1f}"
    built = None if figures["build_seconds"] is None else f"{figures['build_seconds']:.0f}"
    return [figures["label"], figures["quality"], f"{low:.3f} to {high:.3f}", figures["in_context"],
            f"{figures['tokens_added']:.0f}", figures["general"], f"{figures['first_token_ms']:.0f}", each, built,
            figures["build_mb"], figures["disk_mb"], led]  # fmt: skip


def _shown(result: dict[str, Any]) -> list[str]:
    """Choose the columns of the slices: all but retrieval, of which each kind's best number of passages stands."""
    names = [name for name in result["methods"] if name.split("-")[0] not in RETRIEVAL]
    for kind in RETRIEVAL:
        found = [name for name in result["methods"] if name.split("-")[0] == kind]
        if found:
            names.append(max(found, key=lambda name: result["methods"][name]["quality"]))
    return names


def _scatter(result: dict[str, Any], key: str, label: str) -> Any:
    figure, axes = canvas()
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, figures in result["methods"].items():
        kinds.setdefault(name.split("-")[0], []).append(figures)
    for i, members in enumerate(kinds.values()):
        x, y = [m[key] for m in members], [m["quality"] for m in members]
        legend = members[0]["label"].partition(" top ")[0]
        ours = legend == "GAG"
        marker = "*" if ours else "os^"[i // len(COLOURS) % 3]  # colours come again with another shape
        axes.plot(x, y, marker=marker, markersize=13 if ours else 5, linewidth=1, label=legend,
                  color=COLOURS[i % len(COLOURS)], linestyle="-" if len(members) > 1 else "none",
                  zorder=3 if ours else 2)  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel(result["metric"])
    axes.set_ylim(-0.03, 1.05)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(-0.3, 1.3 * max(figures[key] for figures in result["methods"].values()))
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    figure.set_size_inches(5.2, 4.8)
    return figure


def _memory(memory: dict[str, Any]) -> Any:
    figure, axes = canvas()
    for i, (name, line) in enumerate(memory["mb"].items()):
        axes.plot(
            memory["domains"], line, marker="o", markersize=4, label=name, color=COLOURS[i % len(COLOURS)]
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(memory["domains"], [str(n) for n in memory["domains"]])
    axes.set_xlabel("domains")
    axes.set_ylabel("MB of weights and indexes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure

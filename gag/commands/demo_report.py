"""Show the demo's figures to a person: tables, confusion, seconds, three answers, and what to do next."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ARMS = {
    "base": "base alone",
    "gag": "GAG",
    "shuffled": "GAG, another entity's vector",
    "zero": "GAG, zero vector",
    "expert_text": "expert's text in the prompt",
    "expert": "expert alone",
    "bm25": "BM25 top-1 statement",
    "reading": "gold statement among 3 near misses",
}
COLUMNS = {"seen_wordings": "seen wordings", "unseen_wordings": "unseen wordings", "new_values": "new values"}


def show(figures: dict[str, Any], folder: Path) -> None:
    """Print everything on stdout."""
    console = Console(highlight=False)
    for domain, scores in figures["domains"].items():
        console.print(_domain_table(domain, scores, figures["tokens_added"]))
    console.print(
        "[dim]Share of answers that contain the gold value, on facts that alignment never saw. "
        "New values: facts whose value was never an answer in alignment, asked apart.[/dim]\n"
    )
    console.print(_routing_table(figures["routing"]))
    general = figures["general"]
    same = "bit for bit the stock base's" if general["identical"] else "[red]NOT the stock base's[/red]"
    console.print(
        f"General questions: {general['before']:.3f} without the domains, {general['after']:.3f} with them; "
        f"{general['misrouted']:.1%} misrouted. Answers and logits on the general route are {same}.\n"
    )
    stages = "  ".join(f"{name} {seconds:.0f} s" for name, seconds in figures["stages"].items())
    console.print(f"[dim]{stages}[/dim]")
    console.print(
        f"[dim]{figures['seconds']:.0f} s in all, at most {figures['peak_rss_mb']} MB of memory[/dim]\n"
    )
    for sample in figures["samples"]:
        asked, answer, route = (escape(sample[key]) for key in ("question", "answer", "route"))
        console.print(f"[bold]{asked}[/bold]\n  {answer}  [dim]({route})[/dim]")
    command = shlex.join([_program(), "ask", figures["samples"][0]["question"], "--project", str(folder)])
    console.print(f"\nAsk your own:  {command}", style="bold", markup=False, soft_wrap=True)


def _program() -> str:
    """Return what to type for `gag`: the name if the shell finds it, else the path of this one."""
    return "gag" if shutil.which("gag") else os.path.relpath(Path(sys.executable).with_name("gag"))


def _domain_table(domain: str, scores: dict[str, Any], added: dict[str, float]) -> Table:
    table = Table(
        title=f"{domain}: {scores['facts']} facts, {scores['questions']} questions",
        box=box.SIMPLE,
        title_justify="left",
    )
    table.add_column("")
    for heading in (*COLUMNS.values(), "tokens added"):
        table.add_column(heading, justify="right")
    for arm, label in ARMS.items():
        cells = [f"{scores[column][arm]:.3f}" for column in COLUMNS] + [
            f"{added[arm]:.0f}" if arm != "expert" else "-"
        ]
        table.add_row(label, *cells, style="bold" if arm == "gag" else "")
    return table


def _routing_table(routing: dict[str, Any]) -> Table:
    names = list(routing["confusion"])
    title = f"routing: {routing['accuracy']:.4f} of {routing['questions']} questions (rows: true, columns: routed)"
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in routing["confusion"].items():
        table.add_row(name, *(str(row[guess]) for guess in names))
    return table

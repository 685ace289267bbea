"""Show the demo's figures to a person: tables, confusion, seconds, three answers, and what to do next."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gag.commands.demo import DemoFigures, DomainScores, RoutingScores

LABELS = {  # of the methods
    "base": "base alone",
    "gag": "GAG",
    "shuffled": "GAG, another question's vectors",
    "zero": "GAG, zero vectors",
    "expert_text": "expert's text in the prompt",
    "expert": "expert alone",
    "bm25": "BM25 top-1 statement",
    "reading": "gold statement among 3 near misses",
}
COLUMNS = ("seen", "unseen", "new value", "tokens")


def show(figures: DemoFigures, folder: Path) -> None:
    """Print everything on stdout."""
    console = Console(highlight=False)
    for domain, scores in figures.domains.items():
        console.print(_domain_table(domain, scores, figures.tokens_added))
    console.print(
        "[dim]Share of answers that contain the gold value, on facts that alignment never saw, in wordings "
        "that training has seen or not. New value: facts whose value was never an answer in alignment, asked "
        "apart. Tokens: what each method adds to the prompt.[/dim]\n"
    )
    console.print(_routing_table(figures.routing))
    for domain, arrived in figures.transfer.items():
        console.print(f"{domain}: {arrived.line}.\n", soft_wrap=True)
    general = figures.general
    same = "bit for bit the stock base's" if general.identical else "[red]NOT the stock base's[/red]"
    console.print(
        f"General questions: {general.before:.3f} without the domains, {general.after:.3f} with them; "
        f"{general.misrouted:.1%} misrouted. Answers and logits on the general route are {same}.\n"
    )
    stages = "  ".join(f"{name} {seconds:.0f} s" for name, seconds in figures.stages.items())
    console.print(f"[dim]{stages}[/dim]")
    total = f"{figures.seconds:.0f} s in all, at most {figures.peak_rss_mb} MB of memory"
    console.print(f"[dim]{total}[/dim]\n")
    for sample in figures.samples:
        question, answer, route = (escape(text) for text in (sample.question, sample.answer, sample.route))
        console.print(f"[bold]{question}[/bold]\n  {answer}  [dim]({route})[/dim]")
    command = shlex.join([_program(), "ask", figures.samples[0].question, "--project", str(folder)])
    console.print(f"\nAsk your own:  {command}", style="bold", markup=False, soft_wrap=True)


def _program() -> str:
    """Return what to type for `gag`: the name if the shell finds it, else the path of this one."""
    return "gag" if shutil.which("gag") else os.path.relpath(Path(sys.executable).with_name("gag"))


def _domain_table(domain: str, scores: DomainScores, added: dict[str, float]) -> Table:
    title = f"{domain}: {scores.facts} facts, {scores.questions} questions"
    table = _table(title, COLUMNS)
    for method, label in LABELS.items():
        shares = (scores.seen_wordings, scores.unseen_wordings, scores.new_values)
        cells = [f"{share[method]:.3f}" for share in shares]
        tokens = f"{added[method]:.0f}" if method != "expert" else "-"
        table.add_row(label, *cells, tokens, style="bold" if method == "gag" else "")
    return table


def _routing_table(routing: RoutingScores) -> Table:
    share = f"routing: {routing.accuracy:.4f} of {routing.questions} questions"
    table = _table(f"{share} (rows: true, columns: routed)", routing.confusion)
    for name, row in routing.confusion.items():
        table.add_row(name, *(str(row[route]) for route in routing.confusion))
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table

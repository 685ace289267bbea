"""`gag route` and `gag router`: where questions go, why, how well, and at what risk."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gag.commands.options import JsonOption, ProjectOption, SetOption, asked, finish, open_project, routed
from gag.errors import SettingsError

if TYPE_CHECKING:
    from gag.evaluation.labelled import LabelledQuestion
    from gag.project.project import Project
    from gag.routing.calibration import Calibration
    from gag.routing.explain import Explanation
    from gag.routing.router import Router

BanksOption = Annotated[
    list[Path] | None,
    typer.Option("--banks", help="Try banks made from such rows in place of the project's. May be repeated."),
]

router_app = typer.Typer(help="Show, judge and calibrate the router.", no_args_is_help=True)


def route(
    question: Annotated[str, typer.Argument(help="The question.")],
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show margins, prototypes and nearest questions.")
    ] = False,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a question would go, with every domain's score."""
    opened = asked(question, project, settings)
    from gag.routing.state import load_router

    router = load_router(opened)
    chosen = router.route([question])[0]
    scores = dict(sorted(router.scores(question).items(), key=lambda pair: -pair[1]))
    lines = [
        f"{'->' if name == chosen.domain else '  '} {name:<20} {score:.4f}" for name, score in scores.items()
    ]
    result, lines = asdict(chosen) | {"scores": scores}, [*lines, f"[{chosen.reason}]"]
    if explain:
        from gag.routing.explain import explain_route

        explanation = explain_route(opened, router, question)
        result["explanation"] = asdict(explanation)
        lines += _explained(explanation)
    finish(as_json, result, "\n".join(lines))


@router_app.command("show")
def router_show(
    strays: Annotated[
        bool, typer.Option("--strays", help="Also name questions that look like another domain's.")
    ] = False,
    banks: BanksOption = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the banks, the rule that was chosen, what it promises, and what other promises would cost."""
    opened = open_project(project, settings) if banks else routed(project, settings)
    learned = _read(opened, banks or [])
    from gag.evaluation.labelled import need_domains

    need_domains(learned)
    router = _router_over(opened, learned)
    made = router.calibration
    held = {
        name: {"questions": bank.count, "centres": bank.centre_count, "sample": bank.sample_count}
        for name, bank in zip(router.names, router.banks, strict=True)
    }
    lines = [
        f"{'bank':<20}{'questions':>10}{'centres':>9}{'judged by':>11}"
        + f"{'margin':>9}{'reach':>8}" * bool(made)
    ]
    for name, bank in held.items():
        lines.append(
            f"{name:<20}{bank['questions']:>10}{bank['centres']:>9}{bank['sample']:>11}" + _door(made, name)
        )
    if made:
        decided, lines = asdict(made), lines + _calibrated(made)
    else:
        decided = {"rule": router.rule, "margins": router.margins}
        lines.append(f"rule {router.rule}, margin {opened.settings.router.margin:g} (not calibrated)")
    shown = {"banks": held, "encoder": asdict(router.encoder.spec), **decided}
    if strays:
        from gag.stages.prototypes import stray_questions

        texts = {
            name: [row.question for row in learned if row.domain == name] for name in router.names if learned
        }
        shown["strays"] = found = stray_questions(opened, router, texts)
        lines += [f"{domain}: {question!r} looks like {other}'s" for domain, other, question in found]
        lines += [] if found else ["no question looks like another domain's"]
    finish(as_json, shown, "\n".join(lines))


@router_app.command("evaluate")
def router_evaluate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Rows with question and domain (default: test rows)."),
    ] = None,
    banks: BanksOption = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Route questions whose domain is known, and write what became of them as JSON and as a page.

    Domains that have a bank and no expert yet are judged with the others.
    """
    opened = open_project(project, settings) if banks else routed(project, settings)
    rows, learned = _evaluated(opened, files or []), _read(opened, banks or [])
    from gag.evaluation.labelled import need_domains
    from gag.evaluation.routing import evaluate_routing
    from gag.evaluation.routing_report import routing_lines, write_routing
    from gag.project.progress import say
    from gag.routing.router import Router
    from gag.routing.state import expertless_banks

    need_domains([*rows, *learned])
    router = _router_over(opened, learned)
    if not learned and (more := expertless_banks(opened, router.encoder.spec)):
        say(f"counted too: {', '.join(more)} (a bank and no expert: `gag ask` sends no question there)")
        here = dict(zip(router.names, router.banks, strict=True))
        router = Router(here | more, router.encoder, opened.settings.router)
        if router.state.warning:
            say(router.state.warning)
    figures = evaluate_routing(router, rows, opened.settings.router)
    page = write_routing(opened.root / "runs" / "router", figures, f"Routing of {len(rows)} questions")
    written = str(page.relative_to(opened.root))
    shown = "\n".join([*routing_lines(figures), f"[{written}]"])
    finish(as_json, asdict(figures) | {"page": written}, shown)


@router_app.command("calibrate")
def router_calibrate(
    alpha: Annotated[
        float | None,
        typer.Option(
            min=1e-6, max=0.5, help="Largest share of general questions to specialists (router.alpha)."
        ),
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the rule, the margin over general and the distance limit anew, and keep it in router/."""
    laid_over = [*(settings or []), *([f"router.alpha={alpha}"] if alpha is not None else [])]
    opened = routed(project, laid_over)
    from gag.project.artifacts import locked
    from gag.routing.state import keep_state, load_router

    with locked(opened.root / "runs"):
        router = load_router(opened, anew=True)
        if router.calibration is None:
            nothing = "router.rule is ppr, or no domain is present: there is nothing to calibrate"
            raise SettingsError(router.state.warning or nothing)
        keep_state(opened, router.state)
    shown = "\n".join([*_calibrated(router.calibration), f"wrote {opened.router.name}/"])
    finish(as_json, router.calibration, shown)


def _read(opened: "Project", files: list[Path]) -> list["LabelledQuestion"]:
    """Read files of questions whose domain is known."""
    from gag.evaluation.labelled import read_labelled

    return [row for file in files for row in read_labelled(file, opened.settings.labels)]


def _evaluated(opened: "Project", files: list[Path]) -> list["LabelledQuestion"]:
    """Read the questions to judge by: files, or else the project's test rows."""
    from gag.evaluation.labelled import read_test_rows
    from gag.project.settings import GENERAL
    from gag.routing.state import expertless_banks

    banked = [*opened.present(), *expertless_banks(opened)]
    present = [name for name in opened.settings.domains if name in banked]
    return _read(opened, files) or read_test_rows(opened, [GENERAL, *present])


def _router_over(opened: "Project", learned: list["LabelledQuestion"]) -> "Router":
    """Load the project's router, or make one over banks of these rows."""
    if not learned:
        from gag.routing.state import load_router

        return load_router(opened)
    from gag.evaluation.routing import banks_of
    from gag.models.loading import load_backbone
    from gag.project.artifacts import locked
    from gag.project.progress import say
    from gag.routing.encoders import cached, make_encoder
    from gag.routing.router import Router

    encoder = make_encoder(opened, lambda: load_backbone(opened.settings.expert, opened.root))
    with locked(opened.root / "runs"):
        banks = banks_of(learned, cached(encoder, opened), opened.settings.router)
    router = Router(banks, encoder, opened.settings.router)
    if router.state.warning:
        say(router.state.warning)
    return router


def _door(made: "Calibration | None", name: str) -> str:
    """Write a specialist's margin, and the share of its questions that reach a specialist."""
    if made is None or name not in made.margins:
        return ""
    reached = f"{made.coverage[name]:.1%}" if made.questions[name] else "-"
    return f"{made.margins[name]:>9.3g}{reached:>8}"


def _calibrated(made: "Calibration") -> list[str]:
    """Say what a calibration decided, what it promises, and what another promise would cost."""
    from gag.project.settings import GENERAL
    from gag.routing.margins import STEADY
    from gag.routing.router import more_questions

    losses = "  ".join(f"{name} {loss:.4f}" for name, loss in made.losses.items())
    lines = [
        f"rule {made.rule}; log loss on questions that it had not seen: {losses}",
        f"at most {made.promised:.1%} of general questions go to specialists; {made.beyond} of "
        f"{made.questions[GENERAL]} that were judged do",
    ]
    if more := more_questions(made):
        lines.append(
            f"a threshold for {made.alpha:.1%} rests on fewer than {STEADY} questions and is drawn from the "
            f"tail of all: {more} more in general.questions would make it steady"
        )
    spread = made.spread
    lines.append(
        f"99 % of domains' own questions lie within {spread.near:.2g} times the usual distance; further out "
        f"margins\ncount from {spread.sure:.2g} on, and beyond {spread.far:.2g} times not at all"
    )
    curve = made.curve
    lines += [
        "",
        f"{'router.alpha':>12}{'general at specialists':>24}{'specialists reached':>21}{'the worst':>11}",
    ]
    for alpha, risk, coverage, least in zip(
        curve.alpha, curve.risk, curve.coverage, curve.least, strict=True
    ):
        here = "  <- here" if alpha == made.alpha else ""
        lines.append(f"{alpha:>12.1%}{risk:>24.2%}{coverage:>21.1%}{least:>11.1%}{here}")
    return lines + [f"note: {note}" for note in made.notes]


def _explained(explanation: "Explanation") -> list[str]:
    """Say what decided a route."""
    lines = [f"rule {explanation.rule}"]
    if explanation.margin is not None:
        needed = explanation.margin_needed
        lines[0] += f"; margin over general {explanation.margin:.3g}, needed {needed:.3g}"
    if explanation.distance is not None and (spread := explanation.spread):
        lines.append(
            f"{explanation.distance:.2g} times as far from the likeliest domain as its own questions; beyond "
            f"{spread.near:.2g} a margin counts from {spread.sure:.2g} on, beyond {spread.far:.2g} not"
        )
    for name, near in explanation.prototypes.items():
        stands_for = f"prototype {near.prototype} of {near.questions} questions"
        lines.append(f"   {name:<20} {stands_for}, cosine {near.cosine:.3f}")
    for name, questions in explanation.questions.items():
        lines += [f"   {name:<20} {cosine:.3f}  {question}" for question, cosine in questions]
    return lines

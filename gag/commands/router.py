"""`gag route` and `gag router`: where questions go, why, how well, and at what risk."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gag.commands.options import JsonOption, ProjectOption, SetOption, asked, finish, open_project
from gag.errors import SettingsError

if TYPE_CHECKING:
    from gag.project.project import Project

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

        result["explanation"] = explained = explain_route(opened, router, question)
        lines += _explained(explained)
    finish(as_json, result, "\n".join(lines))


@router_app.command("show")
def router_show(
    project: ProjectOption = None, settings: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show the banks, the rule that was chosen, and what it promises."""
    opened = _routed(project, settings)
    from gag.routing.state import load_router

    router = load_router(opened)
    banks = {
        name: {"questions": bank.count, "centres": len(bank.centres), "held_out": len(bank.held_out)}
        for name, bank in zip(router.names, router.banks, strict=True)
    }
    decided = (
        asdict(router.calibration) if router.calibration else {"rule": router.rule, "margin": router.margin}
    )
    lines = [f"{'bank':<20}{'questions':>10}{'centres':>9}{'held out':>10}"]
    lines += [
        f"{name:<20}{b['questions']:>10}{b['centres']:>9}{b['held_out']:>10}" for name, b in banks.items()
    ]
    shown = "\n".join([*lines, *_decided(decided)])
    finish(as_json, {"banks": banks, "encoder": asdict(router.encoder.spec), **decided}, shown)


@router_app.command("evaluate")
def router_evaluate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Rows with question and domain (default: test rows)."),
    ] = None,
    banks: Annotated[
        list[Path] | None,
        typer.Option(help="Try banks made from such rows in place of the project's. May be repeated."),
    ] = None,
    project: ProjectOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Route questions whose domain is known, and write what became of them as JSON and as a page."""
    opened = open_project(project, settings) if banks else _routed(project, settings)
    from gag.evaluation.labelled import need_domains, read_asked, read_test_rows
    from gag.project.settings import GENERAL

    labels = opened.settings.labels
    rows = [row for file in files or [] for row in read_asked(file, labels)]
    rows = rows or read_test_rows(
        opened, [GENERAL, *(n for n in opened.settings.domains if n in opened.present())]
    )
    learned = [row for file in banks or [] for row in read_asked(file, labels)]
    need_domains([*rows, *learned])
    from gag.evaluation.routing import evaluate_routing, routing_lines, write_routing

    router = _router_over(opened, learned)
    figures = evaluate_routing(router, rows, opened.settings.router)
    folder = opened.root / "runs" / "router"
    page = write_routing(folder, figures, f"Routing of {len(rows)} questions")
    written = page.relative_to(opened.root)
    finish(as_json, {**figures, "page": str(written)}, "\n".join([*routing_lines(figures), f"[{written}]"]))


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
    """Choose the rule, the margin over general and the distance limit anew, and write router.json."""
    opened = _routed(project, [*(settings or []), *([f"router.alpha={alpha}"] if alpha is not None else [])])
    from gag.routing.state import load_router
    from gag.project.artifacts import locked
    from gag.routing.calibration import save_calibration

    with locked(opened.root / "runs"):
        router = load_router(opened, saved=False)
        if router.calibration is None:
            raise SettingsError(
                router.warning or "router.rule is ppr, or no domain is present: there is nothing to calibrate"
            )
        save_calibration(opened.calibration, router.calibration)
    decided = asdict(router.calibration)
    finish(as_json, decided, "\n".join([*_decided(decided), f"wrote {opened.calibration.name}"]))


def _routed(project: Path | None, settings: list[str] | None) -> "Project":
    opened = open_project(project, settings)
    if not opened.general.is_dir():
        raise SettingsError(
            "the project has no general bank yet; run `gag build DOMAIN` or `gag prototypes general`"
        )
    return opened


def _router_over(opened: "Project", learned: list[Any]) -> Any:
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
    if router.warning:
        say(router.warning)
    return router


def _decided(decided: dict[str, Any]) -> list[str]:
    if "losses" not in decided:
        return [f"rule {decided['rule']}, margin {decided['margin']:g} (not calibrated)"]
    losses = "  ".join(f"{name} {loss:.4f}" for name, loss in decided["losses"].items())
    return [
        f"rule {decided['rule']}; log loss on the questions held out: {losses}",
        f"at most {decided['reached']:.1%} of general questions go to specialists: a margin of {decided['margin']:.3g} is needed",
        f"a question further than {decided['far']:.3g} from every domain is out of distribution and goes to general",
    ]


def _explained(explained: dict[str, Any]) -> list[str]:
    lines = [f"rule {explained['rule']}"]
    if explained["margin"] is not None:
        lines[0] += (
            f"; margin over general {explained['margin']:.3g}, needed {explained['margin_needed']:.3g}"
        )
    if explained["distance"] is not None:
        lines.append(
            f"distance to the nearest domain {explained['distance']:.3g}, out of distribution above {explained['far']:.3g}"
        )
    for name, near in explained["prototypes"].items():
        lines.append(
            f"   {name:<20} prototype {near['prototype']} of {near['questions']:.0f} questions, cosine {near['cosine']:.3f}"
        )
    for name, questions in explained["questions"].items():
        lines += [f"   {name:<20} {cosine:.3f}  {question}" for question, cosine in questions]
    return lines

"""`gag compare`, one story: build what is compared, plan what it takes, ask every method the same questions, and report."""

from pathlib import Path
from typing import Any

from gag.errors import SettingsError
from gag.evaluation.compare import compare
from gag.evaluation.methods import known_methods
from gag.evaluation.report import write_report
from gag.planning.plan import plan
from gag.project.artifacts import locked
from gag.project.project import Project
from gag.stages.align import align
from gag.stages.readouts import readouts

TRAINED = ("corpus", "adapt", "readouts", "align")


def run_comparison(
    project: Project, domain: str, methods: list[str] | None, quick: bool
) -> tuple[dict[str, Any], Path]:
    """Compare the methods (default: all; with `quick` without the variants) on a domain -> figures, and their page."""
    known, variants = known_methods(project), project.settings.evaluation.variants
    chosen = methods or [name for name in known if not quick or name not in variants]
    if unknown := [name for name in chosen if name not in known]:
        raise SettingsError(f"no method {unknown[0]!r}; --methods takes {', '.join(known)}")
    others = {
        name: project.under(name) for name in chosen if name in variants
    }  # wrong settings are named before any work
    with locked(project.root / "runs"):
        for other in others.values():
            readouts(other, domain)
            align(other, domain)
        result = compare(project, domain, chosen, quick, _peaks(project, domain, others))
        return result, write_report(project.run(domain, "compare"), result)


def _peaks(project: Project, domain: str, variants: dict[str, Project]) -> dict[str, float]:
    """Return the MB of the heaviest stage of what each method trains, as `gag plan` counts them."""

    def peak(of: Project, *stages: str) -> float:
        return round(max(stage.peak for stage in plan(of, domain).stages if stage.name in stages) / 1e6, 1)

    settings = project.settings
    tuned = {
        "expert": settings.base,
        "adapt": settings.adapt.model_copy(update={"tuning": "lora"}),
    }  # the base, as an expert
    found = {
        "gag": peak(project, *TRAINED),
        "prefix": peak(project, "align"),
    }  # a prefix has alignment's passes
    found["lora"] = peak(Project(project.root, settings.model_copy(update=tuned)), "adapt")
    return found | {name: peak(other, *TRAINED) for name, other in variants.items()}

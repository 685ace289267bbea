"""What a route was decided by."""

from dataclasses import dataclass

from gag.project.project import Project
from gag.project.settings import GENERAL
from gag.routing.calibration import Spread
from gag.routing.router import Nearest, Router
from gag.routing.state import near_questions


@dataclass(frozen=True)
class Explanation:
    """The figures behind a question's route."""

    rule: str
    margin: float | None  # of the best specialist over general; None without specialists
    margin_needed: float
    distance: float | None  # from the domain that scores best; None where the router is not calibrated
    spread: Spread | None  # what distances ask of margins
    prototypes: dict[str, Nearest]  # by domain
    questions: dict[str, list[tuple[str, float]]]  # by domain, where it carries its questions


def explain_route(project: Project, router: Router, question: str) -> Explanation:
    """Say what a route was decided by.

    Margins, distance, nearest prototypes, and questions where a domain carries them.
    """
    vector = router.encoder.encode([question])
    verdict = router.judge(vector)
    folders = {GENERAL: project.general} | {name: project.domain(name) for name in router.names[1:]}
    carried = {name: near_questions(folder, vector[0]) for name, folder in folders.items()}
    return Explanation(
        rule=router.rule,
        margin=float(verdict.margins[0]) if len(router.names) > 1 else None,
        margin_needed=float(verdict.needed[0]),
        distance=None if verdict.distances is None else float(verdict.distances[0]),
        spread=router.calibration.spread if router.calibration else None,
        prototypes=router.nearest(vector[0]),
        questions={name: near for name, near in carried.items() if near},
    )

"""Conversations by rule: a follow-up after a question, and a question of another kind after it.

    python -m benchmarks.turns --data ../shared/data/routing --json

"And how is it measured?" belongs to the domain of the question before it; a general question that is asked
after a domain's does not. Both are routed by the last turn alone, and with the turn before where that goes to
general (`serve.turns`), beside the questions as single turns.
"""

import random
from argparse import Namespace
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.routing import _banks, _by_domain, _encoder, _read, _router
from gag.project.settings import GENERAL
from gag.routing.encoders import CachedEncoder
from gag.routing.query_encoder import QueryEncoder
from gag.routing.router import Route, Router
from gag.routing.turns import route_turns

FOLLOW_UPS = (
    "And its dose?", "How is it measured?", "Why is that?", "And what happens at a higher one?",
    "Is it the same for the others?", "Can you say that in one sentence?", "How long does it take?",
    "What are its side effects?", "And who found it?", "Which of the two is better?",
    "What does it depend on?", "And the formula?", "Does it change with time?", "How sure is that?",
    "What if it is left out?", "Give an example of it.",
)  # fmt: skip
FLOORS = {
    "follow-ups in their domain, with the turn before": (">=", 0.9),
    "general questions after a domain's that stay general": (">=", 0.9),
}


class Asked:
    """Routes texts by an encoder of its own, over banks that were made by it."""

    def __init__(self, router: Router, encoder: QueryEncoder):
        self._router, self._encoder = router, encoder

    def route(self, questions: list[str]) -> list[Route]:
        """Route questions."""
        return self._router.route_vectors(self._encoder.encode(list(questions)))


def main() -> None:
    """Measure and print."""
    args = _arguments()
    encoder = CachedEncoder(_encoder(args.encoder), args.cache)
    rows = {name: _read(args.data, name) for name in ("prototypes", "calibration", "test")}
    known = _by_domain([*rows["prototypes"], *rows["calibration"]], encoder)
    router = Asked(_router(_banks(known)), encoder)
    drawn, figures = random.Random(0), {}
    asked = [(row.question, str(row.domain)) for row in rows["test"]]
    special = [pair for pair in asked if pair[1] != GENERAL]
    general = [question for question, domain in asked if domain == GENERAL]
    follow_ups = [((question, drawn.choice(FOLLOW_UPS)), domain) for question, domain in special]
    before = {true: [one for one, domain in special if domain != true] for _, true in special}
    moved = [(drawn.choice(before[true]), question) for question, true in special]
    others = [(drawn.choice(special)[0], question) for question in general]
    single = _domains(router, [(question,) for question, _ in asked])
    figures["single turns, micro"] = _share(single, [domain for _, domain in asked])
    for turns, said in ((1, "last turn alone"), (2, "with the turn before")):
        found = _domains(router, [chat[-turns:] for chat, _ in follow_ups])
        figures[f"follow-ups in their domain, {said}"] = _share(found, [domain for _, domain in follow_ups])
        away = [domain not in (GENERAL, true) for domain, (_, true) in zip(found, follow_ups, strict=True)]
        figures[f"follow-ups in another domain, {said}"] = sum(away) / len(away)
        figures[f"questions of a domain after another's in their own, {said}"] = _share(
            _domains(router, [chat[-turns:] for chat in moved]), [domain for _, domain in special]
        )
        kept = _domains(router, [chat[-turns:] for chat in others])
        name = "general questions after a domain's that stay general"
        figures[name if turns == 2 else f"{name}, {said}"] = _share(kept, [GENERAL] * len(kept))
    harness.report(args, "turns", figures, FLOORS, [])


def _domains(router: Asked, chats: list[tuple[str, ...]]) -> list[str]:
    with torch.no_grad():
        return [route.domain for route, _ in route_turns(router, chats)]


def _share(found: list[str], true: list[str]) -> float:
    return sum(a == b for a, b in zip(found, true, strict=True)) / len(true)


def _arguments() -> Namespace:
    parser = harness.options(__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, help="as for benchmarks.routing")
    parser.add_argument("--encoder", help="as for benchmarks.routing")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks"), help="where vectors are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()

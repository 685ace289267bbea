"""Where a conversation goes: by its last question, with the one before where it may be a follow-up."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from gag.project.settings import GENERAL
from gag.routing.router import Route


class Routes(Protocol):
    """Anything that routes questions; `Router` does."""

    def route(self, questions: Sequence[str]) -> list[Route]:
        """Route a batch of questions."""
        ...


def route_turns(router: Routes, chats: Sequence[Sequence[str]]) -> list[tuple[Route, str]]:
    """Route conversations by the user's turns, the last of each the question.

    A question that is like none that is known, or of which general is not sure, may be a follow-up ("and its
    dose?"): where the turn before and it together clear a domain's margin, the conversation stays in that
    domain. A general question of its own, asked after a domain's, is like known ones, and goes to general.

    Returns:
        For each its route, and the text that asks the expert.
    """
    if not chats:
        return []
    found = list(
        zip(router.route([turns[-1] for turns in chats]), [turns[-1] for turns in chats], strict=True)
    )
    open_ones = [i for i, (route, _) in enumerate(found) if route.doubtful and len(chats[i]) > 1]
    joined = [f"{chats[i][-2]} {chats[i][-1]}" for i in open_ones]
    for i, text, route in zip(open_ones, joined, router.route(joined) if joined else [], strict=True):
        if route.domain != GENERAL:
            found[i] = replace(route, reason=f"{route.reason}, with the turn before"), text
    return found


def restricted(route: Route, allowed: Collection[str] | None) -> Route:
    """Return a route as those see it who may ask some domains alone; the others' are general's, unnamed."""
    if allowed is None:
        return route
    scores = {name: score for name, score in route.scores.items() if name in (GENERAL, *allowed)}
    if route.domain in (GENERAL, *allowed):
        return replace(route, scores=scores)
    return Route(GENERAL, scores.get(GENERAL, 0.0), "its domain is not open to this key", scores)

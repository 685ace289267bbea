"""Public facts: what the bundled base knows, and the questions that must stay on the general route."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class PublicFact:
    """A real fact with all its question wordings.

    `near` marks syntax and words shared with the private domains.
    """

    relation: str
    subject: str
    value: str
    statement: str
    questions: tuple[str, ...]
    near: bool


@cache
def public_facts() -> tuple[PublicFact, ...]:
    """Return every public fact of the bundled world, in file order."""
    text = (files("gag.pocket") / "assets" / "general.yaml").read_text(encoding="utf-8")
    return tuple(
        PublicFact(
            relation=name,
            subject=subject,
            value=value,
            statement=spec["statement"].format(e=subject, v=value),
            questions=tuple(wording.format(e=subject) for wording in spec["wordings"]),
            near=spec.get("near", False),
        )
        for name, spec in yaml.safe_load(text).items()
        for subject, value in (spec.get("facts") or _sums(**spec["arithmetic"])).items()
    )


def _sums(plus: int, times: int) -> dict[str, str]:
    sums = {f"{a} plus {b}": str(a + b) for a in range(plus + 1) for b in range(plus + 1)}
    products = {f"{a} times {b}": str(a * b) for a in range(1, times + 1) for b in range(1, times + 1)}
    return sums | products

"""What the engine is made of: a base, experts, a router and domains, each of which can be another."""

from collections.abc import Collection, Sequence
from typing import Protocol

from gag.engine.answer import Knowledge
from gag.engine.pool import Module
from gag.models.experts import ExpertSource
from gag.models.language_model import LanguageModel, Likely
from gag.project.settings import DecodingSettings
from gag.routing.turns import Routes


class Domains(Protocol):
    """What the engine asks of the domains; `DomainPool` follows a project's folder."""

    @property
    def names(self) -> list[str]:
        """The domains that can be asked."""
        ...

    def refresh(self) -> bool:
        """Look again which domains there are; say whether anything changed."""
        ...

    def module(self, name: str) -> Module:
        """Return a domain's module."""
        ...

    def release(self, in_use: Collection[str]) -> list[str]:
        """Drop the experts that left and are not in use any more -> their names."""
        ...


class Parts(Protocol):
    """The parts together, as the loop that answers has them; `GAG` is one."""

    @property
    def base(self) -> LanguageModel:
        """The frozen base."""
        ...

    @property
    def experts(self) -> ExpertSource:
        """Where the domains' experts are."""
        ...

    @property
    def router(self) -> Routes:
        """What says where a question goes."""
        ...

    @property
    def domains(self) -> Domains:
        """The modules, by name."""
        ...

    @property
    def decoding(self) -> DecodingSettings:
        """How long answers may be, and how many questions are answered together."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether other machines route and read, so that a thread waits for them."""
        ...

    def read(
        self,
        questions: Sequence[str],
        domain: str,
        module: Module | None = None,
        written: list[list[int]] | None = None,
        likely: list[Likely] | None = None,
    ) -> list[Knowledge]:
        """Read a domain's expert on questions and project what it knows."""
        ...

"""Settings whose fields say what they change, the result or only the computation, and when they act.

A stage's key is made from the fields that change its result, by their values: a setting that only saves
memory, or one that does not act, never makes a finished stage stale.
"""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

RESULT, COMPUTATION = "result", "computation"


@dataclass(frozen=True)
class When:
    """A condition on another field of the same group."""

    field: str
    among: tuple[Any, ...] = ()  # it has one of these values; or else ...
    above: float | None = None  # ... it is larger than this; or else it is not set

    def holds(self, settings: BaseModel) -> bool:
        """Say whether the condition holds."""
        value = getattr(settings, self.field)
        if self.among:
            return value in self.among
        return value is None if self.above is None else value > self.above

    @property
    def words(self) -> str:
        """The condition as words: `temperature is above 0`."""
        if self.among:
            return f"{self.field} is {' or '.join(map(str, self.among))}"
        return f"{self.field} is not set" if self.above is None else f"{self.field} is above {self.above:g}"


@dataclass(frozen=True)
class Mark:
    """What a field changes; `stage` names the stage, where a group serves two."""

    changes: str
    when: When | None = None
    stage: str | None = None


def result(default: Any = ..., when: When | None = None, stage: str | None = None, **field: Any) -> Any:
    """Declare a field that changes what comes out."""
    return _field(default, Mark(RESULT, when, stage), field)


def computation(default: Any = ..., when: When | None = None, **field: Any) -> Any:
    """Declare a field that changes only how it is computed: memory, time, place."""
    return _field(default, Mark(COMPUTATION, when), field)


def _field(default: Any, mark: Mark, field: dict[str, Any]) -> Any:
    if isinstance(default, type) and issubclass(default, BaseModel):
        return Field(default_factory=default, json_schema_extra={"mark": mark}, **field)  # pyright: ignore
    return Field(default=default, json_schema_extra={"mark": mark}, **field)  # pyright: ignore


class Settings(BaseModel):
    """The base of every settings model.

    Frozen, unknown keys refused, numbers by value (8, 8.0 and "8" are one).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @classmethod
    def mark(cls, name: str) -> Mark | None:
        """Return a field's mark; a group of settings has none of its own."""
        extra = cls.model_fields[name].json_schema_extra
        return extra["mark"] if isinstance(extra, dict) and "mark" in extra else None  # pyright: ignore

    def acts(self, name: str) -> bool:
        """Say whether a field acts, the others being what they are."""
        mark = self.mark(name)
        return mark is None or mark.when is None or mark.when.holds(self)

    def key(self, stage: str | None = None) -> dict[str, Any]:
        """Return the values that decide the result (of a stage, where a group serves two), for JSON."""
        plain, found = self.model_dump(mode="json"), {}
        for name in type(self).model_fields:
            mark, value = self.mark(name), getattr(self, name)
            if isinstance(value, Settings):
                found[name] = value.key(stage)
            elif mark and mark.changes == RESULT and self.acts(name) and mark.stage in (None, stage):
                found[name] = plain[name]
        return found

    def without_effect(self, written: Any, path: str = "") -> list[str]:
        """Name the settings that somebody wrote and that do not act, each with what would make it act."""
        found: list[str] = []
        for name in written if isinstance(written, dict) else ():
            if name not in type(self).model_fields:
                continue
            value, mark = getattr(self, name), self.mark(name)
            if isinstance(value, Settings):
                found += value.without_effect(written[name], f"{path}{name}.")
            elif mark and mark.when and not self.acts(name) and value != self._default(name):
                found.append(f"{path}{name} has no effect: it acts only where {path}{mark.when.words}")
        return found

    def changed(self, **values: Any) -> Self:
        """Return the same settings with some values replaced, validated anew."""
        return type(self).model_validate(self.model_dump() | values)

    def _default(self, name: str) -> Any:
        return type(self).model_fields[name].get_default(call_default_factory=True)

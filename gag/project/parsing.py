"""gag.yaml as settings: presets under it, `a.b=c` over it.

A refusal names the setting and the nearest valid name.
"""

import datetime
import difflib
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from gag.errors import SettingsError
from gag.project.hyperparameters import PRESETS
from gag.project.settings import ProjectSettings

PROJECT_FILE = "gag.yaml"
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


def read_yaml(text: str) -> dict[str, Any]:
    """Read the text of gag.yaml -> its content; a key that stands twice is refused."""
    try:
        content = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except _NOT_YAML as error:
        raise SettingsError(f"{PROJECT_FILE} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{PROJECT_FILE} must hold settings (key: value); `gag init` writes an example")
    return content


def parse_settings(content: dict[str, Any]) -> ProjectSettings:
    """Validate the content of gag.yaml, its preset laid under it."""
    preset = content.get("preset", "v1")
    try:
        return ProjectSettings.model_validate(
            _under(content, PRESETS.get(preset, {}) if isinstance(preset, str) else {})
        )
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors()[:3])) from error


def override(content: dict[str, Any], text: str) -> None:
    """Lay one `a.b=c` over the content of gag.yaml, in place."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError(f"--set {text!r} is not of the form a.b=c")
    *path, last = key.strip().split(".")
    for part in path:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise SettingsError(f"--set {text!r}: {part} is a value, not a group of settings")
    try:
        content[last] = yaml.load(value, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except _NOT_YAML as error:
        raise SettingsError(
            f"--set {text!r}: {value!r} is not YAML ({' '.join(str(error).split())})"
        ) from error


class _UniqueKeys(yaml.SafeLoader):
    """A SafeLoader that refuses a key which stands twice in one group."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]  # pyright: ignore
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"{twice[0]} stands twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def _under(content: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """Lay a preset's groups of settings under those of gag.yaml."""
    groups = {
        name: {**group, **content[name]} if isinstance(content.get(name), dict) else group
        for name, group in preset.items()
    }
    return content | {
        name: group for name, group in groups.items() if isinstance(content.get(name, {}), dict)
    }


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float | datetime.date):
        where = path.removesuffix(".[key]")
        return (
            f"setting {where}: YAML reads this as {problem['input']!r}, and not as text; write it in quotes"
        )
    if problem["type"] != "extra_forbidden":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"setting {path}: {reason}" if path else reason
    names = sorted(_fields(ProjectSettings, problem["loc"][:-1]))
    near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
    return f"unknown setting {path}; " + (
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    )


def _fields(model: Any, path: tuple[Any, ...]) -> set[str]:
    """Return the fields that are valid at a path; a group of named groups (`domains`) takes any name."""
    kind: Any = model
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
    return set(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else set()

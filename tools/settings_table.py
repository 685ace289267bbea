"""Write docs/settings.md from the marks: every setting, its default, what it changes, when.

python -m tools.settings_table
"""

import json
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from gag.project.marks import COMPUTATION, Settings
from gag.project.settings import ProjectSettings

HEAD = """# The settings of gag.yaml

Made by `python -m tools.settings_table` from the settings themselves. **Result**: it changes what comes
out, so a stage whose result it changes is made again. **Computation**: it changes only memory, time or
place; a finished stage stays, and an unfinished run goes on. A setting that acts only when another is so,
and is written all the same, is named on stderr. Numbers count by value: 8, 8.0 and "8" are one.
"""


def page() -> str:
    """Write the page."""
    return HEAD + "".join(_group(ProjectSettings, ""))


def _group(model: type[Settings], path: str) -> list[str]:
    """Write a group as a table, and the groups inside it behind."""
    rows, inner = [], []
    for name, field in model.model_fields.items():
        group = _inside(field.annotation)
        if group:
            inner += _group(group, f"{path}{name}{'.NAME' if get_origin(field.annotation) is dict else ''}.")
        else:
            rows.append(_row(model, name, f"{path}{name}"))
    told = (model.__doc__ or "").strip()
    table = ["", "| setting | default | changes | what it is |", "|---|---|---|---|", *rows, ""]
    title = path.rstrip(".") or "the project"
    return (
        ["\n".join([f"\n## `{title}`" if path else f"\n## {title}", "", told, *table]), *inner]
        if rows
        else inner
    )


def _row(model: type[Settings], name: str, path: str) -> str:
    field, mark = model.model_fields[name], model.mark(name)
    if mark is None:
        raise TypeError(f"{path} has no mark")
    default = field.get_default(call_default_factory=True)
    shown = "needed" if default is PydanticUndefined else f"`{json.dumps(default, default=list)}`"
    changes = (
        "computation" if mark.changes == COMPUTATION else f"result{f' of {mark.stage}' if mark.stage else ''}"
    )
    when = f"; only where {mark.when.words}" if mark.when else ""
    told = (field.description or "").replace("|", "\\|")
    return f"| `{path}` | {shown} | {changes}{when} | {told} |"


def _inside(annotation: Any) -> type[Settings] | None:
    """Return the settings inside a field: a group, or a dictionary of groups."""
    kind = get_args(annotation)[1] if get_origin(annotation) is dict else annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "settings.md").write_text(page(), encoding="utf-8")

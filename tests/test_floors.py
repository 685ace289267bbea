"""Imports run one way, from the command line down to the errors.

Rooms, floors and files keep their bounds.
"""

import ast
from pathlib import Path

import pytest

from tools.rooms import House, draw, table, walk

ROOT = Path(__file__).parents[1]
ROOMS = {  # each with the rooms that it may not import: what stands beside or above it
    "errors": {"project"},
    "project": {"models"},
    "models": {"readout", "projection", "routing", "training"},
    "readout": {"projection", "routing", "training"},
    "projection": {"readout", "routing", "training"},
    "routing": {"readout", "projection", "training"},
    "training": {"readout", "projection", "routing"},
    "planning": {"engine", "stages", "evaluation"},
    "remote": {"engine", "stages", "evaluation", "projection"},
    "engine": {"stages", "evaluation", "serving"},
    "stages": {"engine", "evaluation"},
    "evaluation": {"commands", "pocket"},
    "pocket": {"engine", "stages", "evaluation", "commands"},
    "serving": {"commands", "evaluation", "stages", "pocket"},
    "corpus": {"engine", "stages", "evaluation", "serving", "training"},
    "commands": {"__main__"},
    "__main__": set(),
}


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def test_the_rooms_are_few_and_imports_run_one_way(house: House) -> None:
    assert house.arrows.keys() == ROOMS.keys()
    assert len(house.floors) <= 18 and max(house.floors.values()) <= 9 and house.circles == []
    for room, forbidden in ROOMS.items():
        reached = house.arrows[room] & forbidden
        assert not reached, f"{room} imports {reached}"


def test_files_import_each_other_in_no_circle(house: House) -> None:
    """Inside a room too, type hints included."""
    arrows = {name: set() for name in house.files}
    for name, tree in house.files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in arrows and node.module != "gag":
                arrows[name].add(node.module)
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for target in arrows[name]:
                visit(target, (*way, name))
            done.add(name)

    for name in arrows:
        if name != "gag":
            visit(name, ())


def test_a_training_rows_parameters_hardly_climb(house: House) -> None:
    made = walk(house, "gag/stages/align.py:align")
    assert made.stays[:2] == ["stages", "project"] and made.climbs < 6


def test_files_and_lines_stay_short_and_every_room_says_what_it_is_for() -> None:
    for path in (ROOT / "gag").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 300, f"{path}: {len(lines)} lines"
        assert max(map(len, lines), default=0) <= 110, f"{path} has a line over 110 columns"
    for face in (ROOT / "gag").glob("*/__init__.py"):
        told = ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))) or ""
        assert 4 <= len(told.splitlines()) <= 8, f"{face} says in some five lines what goes in and out"


def test_the_drawing_in_the_docs_is_of_today(house: House) -> None:
    made = walk(house, "gag/stages/align.py:align")
    again = "run: python -m tools.rooms"
    assert (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8") == table(house, made), again
    assert (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8") == draw(house), again


def test_loose_dictionaries_cross_no_files(house: House) -> None:
    """A public function hands on a dataclass; only what is written as JSON, or logged, is a dictionary."""
    allowed = {  # the edge: manifests, logs, reports, and what a run's inputs.json holds
        "gag.project", "gag.training.report", "gag.training.llamafactory", "gag.stages", "gag.commands",
        "gag.evaluation.page", "gag.evaluation.comparison", "gag.evaluation.summary", "gag.routing.encoders",
        "gag.readout.store", "gag.pocket", "gag.training.tracking", "gag.serving",
    }  # fmt: skip
    loose = []
    for name, tree in house.files.items():
        if any(name == place or name.startswith(f"{place}.") for place in allowed):
            continue
        for node in ast.walk(tree):
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if public and node.returns is not None and "dict[str, Any]" in ast.unparse(node.returns):
                loose.append(f"{name}.{node.name}")
    assert loose == []

"""Draw the rooms of the house from its imports, and count how often a parameter climbs.

python -m tools.rooms [--root DIR] [--walk FILE:FUNCTION] [--json] writes docs/rooms.svg and docs/rooms.md.

A room is a file or a package of gag/; it stands one floor above the highest room that it imports. A walk
follows a function's parameters, and their attributes, through the calls that pass them on, in the order in
which they are written. What a call returns is another thing, and is not followed: so a parameter that is
resolved again and again shows. Going from a room to a higher one is a climb.
"""

import argparse
import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

PACKAGE = "gag"
FACE = 40  # lines below which an __init__.py that defines nothing is a package's face, and no room
WALK = "gag/stages/align.py:align"


@dataclass(frozen=True)
class House:
    """The files of a package, and the rooms that they make."""

    root: Path

    @cached_property
    def files(self) -> dict[str, ast.Module]:
        """Every file, by its dotted name."""
        found = {}
        for path in sorted((self.root / PACKAGE).rglob("*.py")):
            parts = list(path.relative_to(self.root).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
        return found

    def room(self, module: str) -> str:
        """Return the room of a file: its package, or itself."""
        return module.split(".")[1] if "." in module else "__init__"

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """Each room, and the rooms that it imports, wherever in its files."""
        found: dict[str, set[str]] = {self.room(module): set() for module in self.files if module != PACKAGE}
        for module, tree in self.files.items():
            if module == PACKAGE:
                continue
            targets = {self.room(name) for name in _imports(tree) if name.startswith(f"{PACKAGE}.")}
            found[self.room(module)] |= targets - {self.room(module)}
        return found

    @cached_property
    def circles(self) -> list[list[str]]:
        """Rooms that import each other in a loop."""
        reach = {room: _reached(room, self.arrows) for room in self.arrows}
        loops = {tuple(sorted(o for o in reach[r] if r in reach[o])) for r in self.arrows if r in reach[r]}
        return [list(loop) for loop in sorted(loops)]

    @cached_property
    def floors(self) -> dict[str, int]:
        """The floor of each room; 1 is the ground."""
        floors: dict[str, int] = {}

        def floor(room: str) -> int:
            if room not in floors:
                floors[room] = 0  # while it is worked out, so that a circle ends
                floors[room] = 1 + max((floor(target) for target in self.arrows[room]), default=0)
            return floors[room]

        return {room: floor(room) for room in self.arrows}

    def lines(self, room: str) -> int:
        """Count the lines of a room's files."""
        own = [self.root / PACKAGE / f"{room}.py", *sorted((self.root / PACKAGE / room).rglob("*.py"))]
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in own if path.is_file())


@dataclass
class Walk:
    """A parameter's way: the rooms that it enters, in the order of the calls."""

    house: House
    stays: list[str] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)

    @property
    def climbs(self) -> int:
        """How often it goes from a room to a higher one."""
        floors = [self.house.floors[room] for room in self.stays]
        return sum(after > before for before, after in pairwise(floors))

    def follow(self, module: str, function: str, entering: set[str]) -> None:
        """Enter a function with some of its parameters, and go where it passes them on."""
        node = _definitions(self.house.files[module]).get(function)
        if node is None or (module, function) in self.seen or not entering:
            return
        self.seen.add((module, function))
        if not self.stays or self.stays[-1] != self.house.room(module):
            self.stays.append(self.house.room(module))
        carried = set(entering)
        for statement in _statements(node):
            for call in _calls(statement):
                for target in self._callees(module, call):
                    self.follow(*target, _entering(self.house.files[target[0]], target[1], call, carried))
            carried |= _aliases(statement, carried)

    def _callees(self, module: str, call: ast.Call) -> list[tuple[str, str]]:
        """Find what a call enters: a name that is defined or imported here, or one class's method."""
        if isinstance(call.func, ast.Name):
            name = call.func.id
            if name in _definitions(self.house.files[module]):
                return [(module, name)]
            home = _imported(self.house.files[module]).get(name)
            return [home] if home and home[0] in self.house.files else []
        if isinstance(call.func, ast.Attribute):
            imported, owner = _imported(self.house.files[module]), call.func.value
            if isinstance(owner, ast.Name) and ".".join(imported.get(owner.id, ())) in self.house.files:
                return [(".".join(imported[owner.id]), call.func.attr)]
            near = {module, *(home for home, _ in imported.values() if home in self.house.files)}
            found = [
                (name, one)
                for name in sorted(near)
                for one in _definitions(self.house.files[name])
                if one.endswith(f".{call.func.attr}")
            ]
            return found if len(found) == 1 else []
        return []


def walk(house: House, start: str) -> Walk:
    """Follow all parameters of FILE:FUNCTION."""
    path, _, function = start.partition(":")
    module = ".".join(Path(path).with_suffix("").parts)
    made = Walk(house)
    made.follow(module, function, set(_parameters(_definitions(house.files[module])[function])))
    return made


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                f"{node.module}.{alias.name}" if node.module == PACKAGE else node.module
                for alias in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return the names that a file imports, each with its module and its name there."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE)
        for alias in node.names
    }


def _definitions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Return functions by name, methods as Class.method, and a class's __init__ as the class too."""
    found: dict[str, ast.FunctionDef] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    found[f"{node.name}.{member.name}"] = member
                    if member.name == "__init__":
                        found[node.name] = member
    return found


def _parameters(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a function in order, those of nested blocks after their head."""
    for child in getattr(node, "body", []):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _statements(child)
    for part in ("orelse", "finalbody"):
        for child in getattr(node, part, []):
            yield child
            yield from _statements(child)


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the nodes of a statement itself, not of the statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from ast.walk(child)


def _calls(statement: ast.stmt) -> list[ast.Call]:
    found = [node for node in _own(statement) if isinstance(node, ast.Call)]
    return sorted(
        found, key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0)
    )  # inner ones end first


def _is_part(node: ast.expr, carried: set[str]) -> bool:
    """Say whether an expression is something that is carried, or an attribute of it."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return isinstance(node, ast.Name) and node.id in carried


def _entering(tree: ast.Module, function: str, call: ast.Call, carried: set[str]) -> set[str]:
    """Return the parameters of a callee that get something of what is carried."""
    node = _definitions(tree).get(function)
    if node is None:
        return set()
    parameters = _parameters(node)
    entering = set()
    if parameters[:1] in (["self"], ["cls"]):
        if isinstance(call.func, ast.Attribute) and _is_part(call.func.value, carried):
            entering.add(parameters[0])
        parameters = parameters[1:]
    for parameter, value in zip(parameters, call.args, strict=False):
        if _is_part(value, carried):
            entering.add(parameter)
    return entering | {k.arg for k in call.keywords if k.arg in parameters and _is_part(k.value, carried)}


def _aliases(statement: ast.stmt, carried: set[str]) -> set[str]:
    """Return the names that a statement gives to something that is carried, or to an attribute of it."""
    if not isinstance(statement, ast.Assign):
        return set()
    found = set()
    for target in statement.targets:
        pairs = [(target, statement.value)]
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            pairs = list(zip(target.elts, statement.value.elts, strict=False))
        found |= {name.id for name, value in pairs if isinstance(name, ast.Name) and _is_part(value, carried)}
    return found


def _reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(arrows[room])
    while waiting:
        target = waiting.pop()
        if target not in found:
            found.add(target)
            waiting += arrows.get(target, ())
    return found


def draw(house: House) -> str:
    """Draw the rooms by floor as an SVG, an arrow from each to those of the floor below that it imports."""
    by_floor: dict[int, list[str]] = {}
    for room, floor in house.floors.items():
        by_floor.setdefault(floor, []).append(room)
    top, width, height, step = max(by_floor), 176, 46, 92
    wide = max(map(len, by_floor.values())) * (width + 24)
    places = {}
    for floor, rooms in by_floor.items():
        left = (wide - len(rooms) * (width + 24)) / 2
        for i, room in enumerate(sorted(rooms)):
            places[room] = (left + 12 + i * (width + 24), 16 + (top - floor) * step)
    parts = []
    for room, targets in sorted(house.arrows.items()):
        for target in sorted(targets):
            (x, y), (u, v) = places[room], places[target]
            near = house.floors[room] - house.floors[target] == 1
            look = 'stroke="#0b6e99" stroke-width="1.4"' if near else 'stroke="#c9c9c4" stroke-width="0.8"'
            parts.append(
                f'<line x1="{x + width / 2:.0f}" y1="{y + height}" x2="{u + width / 2:.0f}" y2="{v}" {look}/>'
            )
    for room, (x, y) in sorted(places.items()):
        parts.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width}" height="{height}" rx="6" '
            'fill="#fff" stroke="#1b1b19"/>'
            f'<text x="{x + width / 2:.0f}" y="{y + 20}" text-anchor="middle" font-weight="600">{room}</text>'
            f'<text x="{x + width / 2:.0f}" y="{y + 36}" text-anchor="middle" fill="#6b6a66" font-size="11">'
            f"{house.lines(room)} lines</text>"
        )
    size = f"0 0 {wide:.0f} {16 + top * step}"
    font = 'font-family="system-ui,sans-serif" font-size="14"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" {font}>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def table(house: House, made: Walk) -> str:
    """Write the rooms by floor as Markdown, with what each is for."""
    lines = [
        "# The rooms of the house",
        "",
        "Made by `python -m tools.rooms` from the imports. A room stands one floor above the highest "
        "room that it imports.",
        "",
        "![The rooms, from the command line down to the errors](rooms.svg)",
        "",
        "| floor | room | lines | what it is | imports |",
        "|---|---|---|---|---|",
    ]
    for room, floor in sorted(house.floors.items(), key=lambda pair: (-pair[1], pair[0])):
        told = ast.get_docstring(house.files[f"{PACKAGE}.{room}"]) or ""
        first = told.split("\n")[0].replace("|", "\\|")
        imports = ", ".join(sorted(house.arrows[room])) or "-"
        lines.append(f"| {floor} | `{room}` | {house.lines(room)} | {first} | {imports} |")
    way = " → ".join(made.stays)
    lines += [
        "",
        f"{len(house.floors)} rooms, {max(house.floors.values())} floors, "
        f"{sum(map(len, house.arrows.values()))} arrows, {len(house.circles)} circles.",
        "",
        f"A training row's way (`{WALK}`): {way}; {made.climbs} climbs.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Draw, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(), help="a checkout (default: here)")
    parser.add_argument("--walk", default=WALK, help="FILE:FUNCTION whose parameters are followed")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write nothing")
    args = parser.parse_args()
    house = House(args.root)
    made = walk(house, args.walk)
    found = {
        "rooms": len(house.floors),
        "floors": max(house.floors.values()),
        "arrows": sum(map(len, house.arrows.values())),
        "circles": len(house.circles),
        "climbs": made.climbs,
        "way": made.stays,
    }
    if not args.json:
        (args.root / "docs" / "rooms.svg").write_text(draw(house), encoding="utf-8")
        (args.root / "docs" / "rooms.md").write_text(table(house, made), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

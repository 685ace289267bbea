"""Imports run one way: a file imports only from its own floor's earlier rooms and from floors below."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gag"
GROUND = ["errors", "ranks", "progress", "settings", "config", "records", "data", "artifacts", "prompts"]
NOUNS = ["backbone", "expert", "sampling", "vocabulary", "readout", "readout_store", "projector", "injection", "encoder",
         "prototypes", "rules", "calibration", "router", "alignment", "losses", "metering", "machine", "run_report",
         "tracking", "training", "encoders", "meaning", "sft", "domain", "engine", "evidence"]  # fmt: skip
WINGS = ["stages", "evaluation", "pocket"]
ROOF = ["demo", "demo_report", "comparison", "commands", "cli", "__main__", "__init__"]
ORDER = {name: i for i, name in enumerate(GROUND + NOUNS)}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return {name.split(".")[1] for name in names if name.startswith("gag.")}


def allowed(owner: str, target: str) -> bool:
    if owner in ROOF:
        return True
    if owner in WINGS:
        return target in ORDER or target == owner
    return target in ORDER and ORDER[target] < ORDER[owner]


def test_every_file_has_a_floor() -> None:
    rooms = {room(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == {*ORDER, *WINGS, *ROOF}


def test_imports_run_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports gag.{target}"
        for path in PACKAGE.rglob("*.py")
        for target in imported(path)
        if not allowed(room(path), target)
    ]
    assert wrong == []


def test_files_stay_short() -> None:
    long = {
        str(p): n
        for p in PACKAGE.rglob("*.py")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}

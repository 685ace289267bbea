"""What is published: the wheel holds the package, whole, and nothing else."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel without an isolated environment, so without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gag").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == ours
    for needed in ("base/model.safetensors", "expert/model.safetensors", "tokenizer/tokenizer.json"):
        name = f"gag/pocket/assets/{needed}"
        assert wheel.read(name) == (ROOT / name).read_bytes()
    assert "gag/py.typed" in held


def test_the_wheel_says_what_it_needs_and_brings_the_command(wheel: zipfile.ZipFile) -> None:
    info = next(name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    facts = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert facts["Requires-Python"] == ">=3.11" and facts["License-Expression"] == "Apache-2.0"
    needed = " ".join(facts.get_all("Requires-Dist", []))
    for package in ("torch", "transformers", "filelock", "psutil", "bm25s", "matplotlib"):
        assert f"{package}" in needed
    assert "gag = gag.commands.app:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert facts.get_payload().startswith("# GAG") and f"{info}/licenses/LICENSE" in wheel.namelist()

"""Two processes get what one gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gag.errors import SettingsError
from gag.project import distributed
from gag.project.project import load_project
from gag.readout.store import read_store
from gag.stages.adapt import adapt
from gag.stages.build import build
from tests.conftest import write_tiny_project


def launch(
    root: Path, *arguments: str, module: str = "gag", **environment: str
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    return subprocess.run(
        [*command, module, *arguments, "--project", str(root), "--json"],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_more_processes_than_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(SettingsError, match="--nproc-per-node 1"):
        distributed.barrier()


def tensors(folder: Path) -> dict:
    return {
        f"{p.name}/{n}": t for p in sorted(folder.rglob("*.safetensors")) for n, t in load_file(p).items()
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    changes = {
        "adapt": {
            "rank": 4,
            "epochs": 2,
            "batch_size": 2,
            "micro_batch_size": 1,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "readout": {"layers": [-1, 1], "pooling": "norm", "slots": 2},
        "align": {
            "projector": "gated_residual",
            "noise": 0.1,
            "semantic": 0.1,
            "diversity": 0.1,
            "epochs": 3,
        },
    }
    one, two = (write_tiny_project(tmp_path_factory.mktemp(name), **changes) for name in ("one", "two"))
    build(load_project(one), ["metals"])
    return one, two, launch(two, "build", "metals")


def test_the_first_process_alone_prints(both: tuple[Path, Path, subprocess.CompletedProcess]) -> None:
    done = both[2]
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    assert done.stderr.count("adapt metals: 10 rows") == 1


@pytest.mark.parametrize("stage", ["adapt/expert", "align"])
def test_weights_are_those_of_one_process(
    both: tuple[Path, Path, subprocess.CompletedProcess], stage: str
) -> None:
    left, right = (tensors(root / "runs" / "metals" / stage) for root in both[:2])
    assert left.keys() == right.keys() and left
    for name in left:
        assert (left[name] - right[name]).norm() <= 1e-5 * max(1.0, float(left[name].norm())), name


def test_readouts_are_those_of_one_process(both: tuple[Path, Path, subprocess.CompletedProcess]) -> None:
    for split in ("align", "val"):
        left, right = (read_store(root / "runs" / "metals" / "readouts" / split) for root in both[:2])
        assert left.ids == right.ids and left.texts == right.texts
        assert (left.slots - right.slots).abs().max() <= 1e-4


FULL = {
    "adapt": {"tuning": "full", "epochs": 2, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-3}
}
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def test_full_tuning_is_that_of_one_process_whole_or_sharded(tmp_path: Path) -> None:
    one, two, shards = (write_tiny_project(tmp_path / name, **FULL) for name in ("one", "two", "shards"))
    adapt(load_project(one), "metals")
    assert launch(two, "adapt", "metals").returncode == 0
    done = launch(shards, "adapt", "metals", module="tests.fsdp_on_cpus", **FSDP2)
    assert done.returncode == 0 and done.stderr.count("sharded") == 2, done.stderr
    before = load_file(one / "models" / "expert" / "model.safetensors")
    left, *others = (tensors(root / "runs" / "metals" / "adapt" / "expert") for root in (one, two, shards))
    for right in others:
        assert left.keys() == right.keys() and left.keys() == {f"model.safetensors/{name}" for name in before}
        for name, tensor in left.items():
            moved = (tensor - before[name.partition("/")[2]]).norm()
            assert (tensor - right[name]).norm() <= 1e-5 * tensor.norm() < moved, name


def test_tied_weights_are_saved_once_in_half_precision_too(tmp_path: Path) -> None:
    root = write_tiny_project(
        tmp_path / "half", expert={"model": "models/expert", "dtype": "bfloat16"}, **FULL
    )
    folder = adapt(load_project(root), "metals") / "expert"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")

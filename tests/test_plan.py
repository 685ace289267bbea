"""The plan before a run: exact counts, figures that a real run confirms, and settings that make it fit."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, Qwen3Config

from gag.errors import SettingsError
from gag.planning.plan import Plan, plan
from gag.project.project import load_project
from gag.project.rows import read_rows, write_rows
from tests.conftest import make_model, write_tiny_project

STAGES = ("adapt", "readouts", "align")
SHAPE = {
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
MEASURE = """
import json, os, sys
from pathlib import Path
import peft, sklearn.cluster, transformers.models.qwen3.modeling_qwen3
from trl import SFTTrainer
from gag.project.project import load_project
from gag.stages.build import STAGES

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

for name in sys.argv[2:]:
    if not (child := os.fork()):  # a stage starts from the imports alone, and has a peak of its own
        before = status("VmRSS")
        STAGES[name](load_project(Path(sys.argv[1])), "metals")
        print(json.dumps([name, status("VmHWM") - before]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def write_project(root: Path, tuning: str = "lora") -> Path:
    """A project whose models weigh 50 MB each, with long answers."""
    batch, tuned = {"batch_size": 8}, {"micro_batch_size": 8, "rank": 8, "tuning": tuning}
    readout = {"batch_tokens": 2400, "max_new_tokens": 8, "layers": [-1, -2], "pooling": "norm", "slots": 2}
    align = {"projector": "gated_residual", "epochs": 1}
    write_tiny_project(root, adapt=batch | tuned, readout=readout, align=batch | align)
    for name, seed in (("base", 0), ("expert", 1)):
        shutil.rmtree(root / "models" / name)
        make_model(root / "models" / name, 512, seed, **SHAPE)
    data = [
        {
            "id": str(i),
            "group": str(i),
            "question": f"Which metal is number {i} in the long list of things that are named here? " * 3,
            "answer": f"The answer is copper and nickel, and also tin {i}. " * 6,
        }
        for i in range(10)
    ]
    write_rows(root / "data" / "metals.jsonl", data)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("planned"))


@pytest.fixture(scope="module")
def measured(root: Path) -> dict[str, int]:
    """Peak bytes of each stage above the imports; freed memory is given back, so as not to blur them."""
    if not sys.platform.startswith("linux"):
        pytest.skip("peaks are read from /proc")
    kept = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(root), *STAGES]
    done = subprocess.run(command, env=os.environ | kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.fixture(scope="module")
def here(root: Path) -> Plan:
    return plan(load_project(root), "metals")


@pytest.mark.parametrize("name", STAGES)
def test_peaks_are_those_of_a_real_run(here: Plan, measured: dict[str, int], name: str) -> None:
    planned = next(stage.peak for stage in here.stages if stage.name == name)
    print(f"{name}: planned {planned / 1e6:.0f} MB, measured {measured[name] / 1e6:.0f} MB")
    assert abs(planned / measured[name] - 1) < 0.2


def test_sizes_on_disk_are_those_that_are_written(root: Path, here: Plan, measured: dict[str, int]) -> None:
    disk = {stage.name: stage.disk for stage in here.stages}
    runs = root / "runs" / "metals"
    written = {
        "experts": runs / "adapt" / "expert" / "adapter_model.safetensors",
        "projector": runs / "align" / "projector.safetensors",
    }
    stored = sum(path.stat().st_size for path in (runs / "readouts").rglob("*.safetensors"))
    assert disk["adapt"]["experts"] == pytest.approx(written["experts"].stat().st_size, rel=0.03)
    assert disk["align"]["projector"] == pytest.approx(
        2 * written["projector"].stat().st_size, rel=0.01
    )  # runs and domain
    assert disk["readouts"]["store"] == pytest.approx(stored, rel=0.03)


def test_parameters_are_counted_without_weights(root: Path, tmp_path: Path, here: Plan) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / "models" / "base")
    assert here.models["base"].parameters == sum(p.numel() for p in model.parameters())
    assert here.models["base"].tied
    shutil.copytree(root, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    bare = plan(load_project(tmp_path / "bare"), "metals")
    assert [stage.peak for stage in bare.stages] == [stage.peak for stage in here.stages]


def test_the_plan_is_a_narrow_table_and_json(here: Plan) -> None:
    lines = here.lines()
    assert max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines if line.endswith("fits")] == [
        stage.name for stage in here.stages
    ]
    assert here.fits and "Everything fits" in lines[-1]
    assert json.loads(json.dumps(asdict(here)))["stages"][0]["name"] == "adapt"


@pytest.fixture(scope="module")
def wide(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with an expert of 0.2 B parameters, of which nothing but the config is there."""
    folder = tmp_path_factory.mktemp("wide") / "project"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("runs", "*.safetensors"))
    config = Qwen3Config.from_pretrained(folder / "models" / "expert", dtype="bfloat16")
    config.hidden_size, config.intermediate_size = 2048, 8192
    config.save_pretrained(folder / "models" / "expert")
    rows = [row for _, row in read_rows(folder / "data" / "metals.jsonl")]
    write_rows(folder / "data" / "metals.jsonl", [row | {"answer": row["answer"] * 3} for row in rows])
    return folder


def cures(root: Path, gpus: str, *overrides: str) -> dict[str, str | None]:
    return {stage.name: stage.cure for stage in plan(load_project(root, overrides), "metals", gpus).stages}


def test_a_cure_is_the_nearest_batch_that_fits(wide: Path) -> None:
    found = cures(wide, "1x2GB")  # 8 rows at a time do not
    assert found.pop("adapt") == "set adapt.micro_batch_size=4"
    assert set(found.values()) == {None}


def test_where_no_batch_fits_a_cure_is_an_adapter(wide: Path) -> None:
    assert (
        cures(wide, "1x3GB", "adapt.tuning=full")["adapt"]
        == 'set adapt.gradient_checkpointing=true, adapt.tuning="lora"'
    )


def test_where_nothing_fits_the_plan_says_how_much_memory_it_takes(wide: Path) -> None:
    made = plan(load_project(wide, ("adapt.gradient_checkpointing=true",)), "metals", "1x1GB")
    assert not made.fits and "no setting is enough, use devices of 2 GB or more" in " ".join(made.lines())


def test_a_corpus_is_a_stage_of_its_own(wide: Path) -> None:
    write_rows(
        wide / "data" / "corpus.jsonl",
        [{"text": f"Metal number {i} is called tin. " * 20} for i in range(20)],
    )
    corpus = ("domains.metals.corpus=data/corpus.jsonl", "pretrain.block_tokens=64")
    made = plan(load_project(wide, corpus), "metals", "8x80GB")
    assert [stage.name for stage in made.stages] == [
        "corpus",
        "adapt",
        "readouts",
        "align",
        "prototypes",
        "ask",
    ]
    assert (made.machine.count, made.machine.memory) == (8, 80 * 10**9)
    assert "312 TFLOP/s" in made.lines()[0]


@pytest.mark.parametrize("gpus", ["80GB", "8x", "8x80", "0x80GB", "eight", "8x80GB,1x24GB"])
def test_other_words_for_gpus_are_refused(root: Path, gpus: str) -> None:
    with pytest.raises(SettingsError, match="is not of the form 8x80GB"):
        plan(load_project(root), "metals", gpus)


def test_a_model_that_is_not_there_is_refused_in_one_line(wide: Path) -> None:
    (wide / "models" / "none").mkdir()
    with pytest.raises(
        SettingsError, match="the model models/none cannot be loaded: .*; name a whole model folder or id"
    ) as refused:
        plan(load_project(wide, ("base.model=models/none",)), "metals", "1x24GB")
    assert "\n" not in str(refused.value)

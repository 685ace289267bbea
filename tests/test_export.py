"""Stage I elsewhere: what is exported, what is adopted, and the paper's settings."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gag.commands.app import app
from gag.errors import ArtifactError, GagError, MismatchError, SettingsError
from gag.models.experts import Experts
from gag.models.loading import load_backbone
from gag.project.artifacts import read_manifest
from gag.project.project import Project, load_project
from gag.project.rows import read_examples, read_passages, write_rows
from gag.stages.adapt import adapt, adopt, key
from gag.training.llamafactory import export_llamafactory
from tests.conftest import make_model, write_tiny_project

PAPER = Path(__file__).parents[1] / "examples" / "paper"


def tiny(root: Path, *overrides: str, corpus: bool = False) -> Project:
    write_tiny_project(root)
    write_rows(root / "data" / "corpus.jsonl", [{"text": f"Metal {i} é."} for i in range(3)])
    named = ["domains.metals.corpus=data/corpus.jsonl"] if corpus else []
    return load_project(root, (*named, *overrides))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Experts that were tuned elsewhere, with what a trainer leaves beside them."""
    made = {}
    for tuning in ("lora", "full"):
        project = tiny(tmp_path_factory.mktemp(tuning), f"adapt.tuning={tuning}")
        made[tuning] = adapt(project, "metals") / "expert"
        (made[tuning] / "training_args.bin").write_bytes(b"pickle")
        (made[tuning] / "optimizer.pt").write_bytes(b"pickle")
    return made


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("corpus", [False, True])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_an_export_holds_the_rows_and_the_settings(tmp_path: Path, tuning: str, corpus: bool) -> None:
    settings = (
        f"adapt.tuning={tuning}",
        "adapt.batch_size=8",
        "adapt.learning_rate=5e-6",
        "expert.revision=v9",
    )
    project, folder = tiny(tmp_path / "p", *settings, corpus=corpus), tmp_path / "out"
    written = export_llamafactory(project, "metals", folder)
    assert sorted(written) == sorted(folder.iterdir())
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    rows = read_examples(folder / info["metals"]["file_name"])
    ours = project.inputs("metals").taught  # validation's groups are taught nowhere
    assert [(row.question, row.answers) for row in rows] == [(row.question, row.answers) for row in ours]
    first = json.loads((folder / "metals.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["system"] == "Say." and set(info["metals"]["columns"].values()) == set(first)
    sft = yaml.safe_load((folder / "sft.yaml").read_text(encoding="utf-8"))
    assert (sft["stage"], sft["finetuning_type"], sft["dataset"], sft["dataset_dir"]) == (
        "sft",
        tuning,
        "metals",
        ".",
    )
    assert sft["per_device_train_batch_size"] * sft["gradient_accumulation_steps"] == 8
    assert sft["learning_rate"] == 5e-6 and sft["cutoff_len"] == 2048 and sft["enable_thinking"] is False
    assert (sft.get("lora_rank"), sft.get("lora_alpha")) == ((4, 8) if tuning == "lora" else (None, None))
    assert str(tmp_path) not in (folder / "sft.yaml").read_text(encoding="utf-8")
    held_out = read_examples(folder / info[sft["eval_dataset"]]["file_name"])
    assert [row.question for row in held_out] == [row.question for row in project.inputs("metals").splits.val]
    assert sft.get("deepspeed") == ("deepspeed.json" if tuning == "full" else None)
    if tuning == "full":
        zero = json.loads((folder / "deepspeed.json").read_text(encoding="utf-8"))
        assert zero["zero_optimization"]["stage"] == 3
    assert (folder / "pt.yaml").exists() == corpus
    start = "output/pt" if corpus and tuning == "full" else "../p/models/expert"
    assert sft["model_name_or_path"] == start
    assert sft.get("model_revision") == (None if start == "output/pt" else "v9")
    assert sft.get("adapter_name_or_path") == ("output/pt" if corpus and tuning == "lora" else None)
    if corpus:
        assert [p.text for p in read_passages(folder / info["metals-corpus"]["file_name"])] == [
            f"Metal {i} é." for i in range(3)
        ]
        pt = yaml.safe_load((folder / "pt.yaml").read_text(encoding="utf-8"))
        assert (pt["stage"], pt["cutoff_len"], pt["output_dir"]) == ("pt", 1024, "output/pt")


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("Qwen/Qwen3-1.7B", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothink"),
        ("meta-llama/Llama-3.2-1B", None),
    ],
)
def test_the_template_renders_what_the_tokenizer_renders(
    tmp_path: Path, model: str, template: str | None
) -> None:
    export_llamafactory(tiny(tmp_path / "p", f"expert.model={model}"), "metals", tmp_path / "out")
    sft = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text(encoding="utf-8"))
    assert (sft["model_name_or_path"], sft.get("template")) == (model, template)


def test_an_export_takes_no_folder_with_files(tmp_path: Path) -> None:
    project, folder = tiny(tmp_path / "p"), tmp_path / "out"
    (folder / "old").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for taken in (folder, tmp_path / "file"):
        with pytest.raises(SettingsError, match="not an empty folder; name a new one"):
            export_llamafactory(project, "metals", taken)
    assert [path.name for path in folder.iterdir()] == ["old"]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_an_adopted_expert_is_the_one_that_was_trained(
    tmp_path: Path, trained: dict[str, Path], tuning: str, capsys
) -> None:
    project = tiny(tmp_path / "p", f"adapt.tuning={tuning}")
    source = shutil.copytree(trained[tuning], tmp_path / "checkpoint-1.5")
    trace = (
        {"base_model_name_or_path": "/home/someone/model"}
        if tuning == "lora"
        else {"_name_or_path": "/home/someone/model"}
    )
    rewrite(source / ("adapter_config.json" if tuning == "lora" else "config.json"), **trace)
    folder = adopt(project, "metals", source)
    facts = read_manifest(folder)
    assert facts["key"] == key(project.inputs("metals"))
    assert (facts["from"], facts["rows"], facts["seconds"]) == ("checkpoint-1.5", 0, 0)
    theirs = {path.name: path for path in source.glob("*.safetensors")}
    assert theirs
    for name, path in theirs.items():
        mine, other = load_file(folder / "expert" / name), load_file(path)
        assert mine.keys() == other.keys() and all(mine[n].equal(other[n]) for n in mine)
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert not {path.suffix for path in kept} & {".bin", ".pt"}
    assert not any(b"/home/someone" in path.read_bytes() for path in kept)
    assert adapt(project, "metals") == folder and "already there" in capsys.readouterr().err
    experts, logits = Experts(load_backbone(project.settings.expert, project.root)), []
    for name, place in {"theirs": trained[tuning], "ours": folder / "expert"}.items():
        experts.load(name, place)
        with experts.using(name) as expert, torch.no_grad():
            logits.append(expert.model(torch.tensor([[5, 6, 7]])).logits)
    assert logits[0].equal(logits[1])


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_torchs_own_files_of_tensors_are_taken_as_safetensors(
    tmp_path: Path, trained: dict[str, Path], tuning: str, capsys
) -> None:
    source = shutil.copytree(trained[tuning], tmp_path / "checkpoint")
    name = {"lora": "adapter_model", "full": "model"}[tuning]
    tensors = load_file(source / f"{name}.safetensors")
    (source / f"{name}.safetensors").unlink()
    torch.save(tensors, source / ("adapter_model.bin" if tuning == "lora" else "pytorch_model.bin"))
    project = tiny(tmp_path / "p", f"adapt.tuning={tuning}")
    ours = load_file(adopt(project, "metals", source) / "expert" / f"{name}.safetensors")
    assert ours.keys() == tensors.keys() and all(ours[key].equal(tensors[key]) for key in tensors)
    project.run("metals", "readouts").mkdir()
    adopt(project, "metals", source)  # the same one: nothing to do
    assert "already there" in capsys.readouterr().err


def test_shards_are_taken_all_or_none(tmp_path: Path, trained: dict[str, Path]) -> None:
    project, source = tiny(tmp_path / "p", "adapt.tuning=full"), tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(trained["full"]).save_pretrained(source, max_shard_size="20KB")
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 1
    kept = adopt(project, "metals", source) / "expert"
    assert [path.name for path in sorted(kept.glob("*.safetensors"))] == [path.name for path in shards]
    shards[0].unlink()
    with pytest.raises(ArtifactError, match=f"shards holds no {shards[0].name}; save the model"):
        adopt(tiny(tmp_path / "q", "adapt.tuning=full"), "metals", source)


def test_an_adopted_expert_replaces_none_that_was_read(tmp_path: Path, trained: dict[str, Path]) -> None:
    project = tiny(tmp_path / "p")
    adopt(project, "metals", trained["lora"])
    project.run("metals", "readouts").mkdir()
    adopt(project, "metals", trained["lora"])  # the same one: nothing to do
    other = shutil.copytree(trained["lora"], tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "adapter_model.safetensors")
    with pytest.raises(
        ArtifactError, match="runs/metals/readouts: made from another expert of metals; remove them"
    ):
        adopt(project, "metals", other)


def test_cross_fitting_and_other_tunings_are_refused(tmp_path: Path, trained: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"readout.folds is 2: .* set readout.folds: 1"):
        adopt(tiny(tmp_path / "a", "readout.folds=2"), "metals", trained["lora"])
    with pytest.raises(MismatchError, match="is of full tuning, adapt.tuning is lora; set it to full"):
        adopt(tiny(tmp_path / "b"), "metals", trained["full"])


def pickled(folder: Path, tuning: str) -> None:
    name = {"lora": "adapter_model", "full": "model"}[tuning]
    (folder / f"{name}.safetensors").rename(
        folder / ("adapter_model.bin" if tuning == "lora" else "pytorch_model.bin")
    )


def cut(folder: Path, tuning: str) -> None:
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])


def halved(folder: Path, tuning: str) -> None:
    for path in folder.glob("*.safetensors"):
        save_file({n: t for n, t in load_file(path).items() if ".layers.1." not in n}, path, {"format": "pt"})


def wider(folder: Path, tuning: str) -> None:
    name = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}[tuning]
    if tuning == "full":
        shutil.rmtree(folder)
        make_model(folder, 32, 3)
    else:
        save_file({n: torch.cat([t, t], -1) for n, t in load_file(folder / name).items()}, folder / name)


def no_checkpoint(folder: Path, tuning: str) -> None:
    for name in ("adapter_config.json", "config.json"):
        (folder / name).unlink(missing_ok=True)


def no_json(folder: Path, tuning: str) -> None:
    (folder / ("adapter_config.json" if tuning == "lora" else "config.json")).write_text("{")


def added_word(folder: Path, tuning: str) -> None:
    if tuning == "lora":
        rewrite(folder / "adapter_config.json", modules_to_save=["embed_tokens"])
        return
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<knowledge>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (pickled, r"cannot be read: it is cut short, or holds more than tensors.*safetensors"),
        (cut, "copy the (whole )?folder again|does not fit the expert backbone"),
        (halved, "differ in .* tensors|lacks (11|14) of its tensors"),
        (wider, "does not fit the expert backbone|2 layers, 32 wide.*2 layers, 24 wide"),
        (no_checkpoint, "neither adapter_config.json nor config.json; point at"),
        (no_json, "is not JSON"),
        (added_word, "no plain LoRA adapter|another vocabulary"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, trained: dict[str, Path], tuning: str, spoil, reason: str
) -> None:
    project, source = (
        tiny(tmp_path / "p", f"adapt.tuning={tuning}"),
        shutil.copytree(trained[tuning], tmp_path / "bad"),
    )
    spoil(source, tuning)
    with pytest.raises(GagError, match=reason):
        adopt(project, "metals", source)
    runs = project.root / "runs" / "metals"
    assert not runs.exists() or not list(runs.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a folder"):
        adopt(tiny(tmp_path / "p"), "metals", tmp_path / "nowhere")


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_the_papers_settings_load(version: str) -> None:
    settings = load_project(PAPER / version).settings
    assert (settings.preset, settings.base.model, settings.expert.model) == (
        version,
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-1.7B",
    )
    assert list(settings.domains) == ["adjuvant", "materials"]
    assert all((d.corpus is not None) == (version == "v4") and d.test for d in settings.domains.values())
    adapt, readout, align, router = settings.adapt, settings.readout, settings.align, settings.router
    assert (adapt.tuning, adapt.learning_rate, adapt.batch_size, adapt.max_tokens) == (
        "full",
        5e-6,
        128,
        2048,
    )
    assert (router.centres, router.max_questions, router.max_tokens) == (
        32,
        10_000,
        1024 if version == "v1" else 256,
    )
    assert align.batch_size == 32 and align.weight_decay == 0
    if version == "v1":
        assert (adapt.epochs, adapt.warmup) == (8, 0.1)
        assert (readout.layers, readout.slots, readout.pooling, readout.max_new_tokens) == (
            (-4,),
            1,
            "last",
            1024,
        )
        assert (readout.temperature, readout.top_p, readout.top_k) == (0.7, 0.8, 20)
        assert (align.projector, align.epochs, align.steps, align.warmup) == ("mlp", 5, None, 0.03)
    else:
        assert (adapt.epochs, adapt.warmup) == (3, 0.05)
        assert (readout.layers, readout.slots, readout.pooling) == ((-1, -2, -4, -6), 4, "norm")
        assert (readout.max_new_tokens, readout.temperature) == (640, 0)
        assert (align.projector, align.steps, align.learning_rate, align.warmup) == (
            "gated_residual",
            800,
            1e-4,
            0.1,
        )
        assert (align.clip, align.semantic, align.diversity) == (1.0, 0.01, 0.001)
        corpus = settings.pretrain
        assert (corpus.learning_rate, corpus.epochs, corpus.block_tokens, corpus.val_share) == (
            5e-5,
            2,
            1024,
            0.03,
        )
        assert (corpus.warmup, corpus.weight_decay) == (0.03, 0.01)


def test_every_command_of_the_papers_page_exists() -> None:
    page = (PAPER / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^|-m )gag ([^`\n#|]+)", page, re.MULTILINE)
    assert len(named) >= 10
    for line in named:
        command: Any = typer.main.get_command(app)
        words = line.split()
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"gag {line}"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert options.issuperset(word for word in words if word.startswith("--")), f"gag {line}"

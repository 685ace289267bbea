"""Tuning the expert: corpus first, folds for cross-fitting, and a killed run that goes on bit for bit."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from gag.errors import ArtifactError, DataError, MismatchError, MissingExtraError
from gag.models.loading import load_backbone
from gag.project.project import Project, load_project
from gag.project.rows import fold_of, read_examples, read_rows, write_rows
from gag.readout.store import read_store
from gag.stages.adapt import adapt, folds, tokenise
from gag.stages.readouts import readouts
from tests.conftest import write_tiny_project

CORPUS = [
    {"id": str(i), "text": f"Metal number {i} is called {name}. " * (1 + i % 3)}
    for i, name in enumerate("abcdefghij")
]


class Killed(BaseException):
    pass


def tiny(root: Path, *overrides: str, corpus: bool = False) -> Project:
    write_tiny_project(root)
    write_rows(root / "data" / "corpus.jsonl", CORPUS)
    fixed = [
        "adapt.epochs=4",
        "adapt.checkpoint_minutes=0",
        "pretrain.block_tokens=32",
        "pretrain.batch_size=2",
    ]
    named = ["domains.metals.corpus=data/corpus.jsonl"] if corpus else []
    return load_project(root, (*fixed, "pretrain.micro_batch_size=2", *named, *overrides))


def weights(folder: Path) -> dict:
    return {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}


def same(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"adapt.tuning={tuning}", "adapt.micro_batch_size=2")
    whole = adapt(tiny(tmp_path / "whole", *settings, corpus=True), "metals")
    project, steps = tiny(tmp_path / "killed", *settings, corpus=True), []
    original = Trainer.training_step

    def dies(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) in (4, 20):
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    for _ in range(2):
        with pytest.raises(Killed):
            adapt(project, "metals")
    scratch = project.run("metals", "adapt.unfinished") / "expert-trainer"
    newest = max(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(
        newest, scratch / "checkpoint-99", ignore=shutil.ignore_patterns("manifest.json")
    )  # half-written
    again = adapt(project, "metals")
    assert steps[-1] > 3 and steps.count(0) < 8  # it went on, and did not start from the beginning each time
    assert same(whole / "expert", again / "expert")
    assert not project.run("metals", "adapt.unfinished").exists()


def test_a_corpus_is_read_before_the_questions(tmp_path: Path) -> None:
    plain = adapt(tiny(tmp_path / "plain"), "metals")
    both = adapt(tiny(tmp_path / "both", corpus=True), "metals")
    assert not same(plain / "expert", both / "expert")
    logged = [row for _, row in read_rows(both / "corpus.log.jsonl")]
    assert any("eval_loss" in row for row in logged)
    with pytest.raises(DataError, match="too small to hold out"):
        project = tiny(tmp_path / "small", corpus=True)
        write_rows(project.root / "data" / "corpus.jsonl", CORPUS[:1])
        adapt(project, "metals")


def test_cross_fitting_reads_each_row_by_an_expert_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tiny(tmp_path / "p", "readout.folds=2", "adapt.learning_rate=0.05")
    taught: dict[str, set] = {}
    from gag.stages import adapt as stage

    original = stage.tune

    def watch(model, root, run, tuning, start=None):
        taught[tuning.name] = {tuple(row["input_ids"]) for row in tuning.rows}
        return original(model, root, run, tuning, start)

    monkeypatch.setattr(stage, "tune", watch)
    adapt(project, "metals")
    inputs = project.inputs("metals")
    assert list(folds(inputs)) == [0, 1] and set(taught) == {"expert", "fold-0", "fold-1"}
    examples = read_examples(project.root / "data" / "metals.jsonl")
    held_out = {example.group for example in inputs.splits.val}
    rows = tokenise(load_backbone(project.settings.expert, project.root).prompts, examples, "Say.", 2048)
    for example, row in zip(examples, rows, strict=True):
        fold = fold_of(example, 2)
        if example.group in held_out:  # no expert is taught what chooses the projector
            assert all(tuple(row["input_ids"]) not in rows_of for rows_of in taught.values())
            continue
        assert tuple(row["input_ids"]) not in taught[f"fold-{fold}"]
        assert tuple(row["input_ids"]) in taught[f"fold-{1 - fold}"]
    crossed = read_store(readouts(project, "metals") / "align")
    plain = tiny(tmp_path / "q", "adapt.learning_rate=0.05")
    adapt(plain, "metals")
    straight = read_store(readouts(plain, "metals") / "align")
    assert crossed.ids == straight.ids and not crossed.slots.equal(straight.slots)


@pytest.mark.parametrize("files", ["train", "the same file twice", "a file of its own", "named validation"])
def test_validation_groups_teach_the_expert_only_from_a_file_of_its_own(tmp_path: Path, files: str) -> None:
    root = write_tiny_project(tmp_path)
    rows = [row for _, row in read_rows(root / "data" / "metals.jsonl")]
    data = {"train": "data/metals.jsonl"}
    if files == "the same file twice":
        shutil.copy(root / "data" / "metals.jsonl", root / "data" / "again.jsonl")
        data = {"adapt": "data/again.jsonl", "align": "data/metals.jsonl"}
    if files == "a file of its own":
        write_rows(
            root / "data" / "taught.jsonl", [row | {"answer": f"It is {row['answer']}."} for row in rows]
        )
        data = {"adapt": "data/taught.jsonl", "align": "data/metals.jsonl"}
    if files == "named validation":
        write_rows(root / "data" / "metals.jsonl", rows[2:])
        write_rows(root / "data" / "val.jsonl", rows[:2])
        data |= {"val": "data/val.jsonl"}
    named = tuple(f"domains.metals.{role}={file}" for role, file in data.items())
    unset = () if "train" in data else ("domains.metals.train=null",)
    inputs = load_project(root, (*named, *unset)).inputs("metals")
    taught, asked = {e.group for e in inputs.taught}, {e.group for e in inputs.splits.val}
    assert asked and ((asked <= taught) if files == "a file of its own" else asked.isdisjoint(taught))
    if files == "train":
        both = load_project(root, ("domains.metals.val=data/metals.jsonl",)).inputs("metals")
        with pytest.raises(DataError, match="align and val share"):
            _ = both.taught


def test_memory_settings_do_not_part_an_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an out-of-memory a smaller micro-batch goes on from there, and gives the same weights."""
    whole = adapt(tiny(tmp_path / "whole", "adapt.micro_batch_size=4"), "metals")
    project, steps = tiny(tmp_path / "cut", "adapt.micro_batch_size=4"), []
    original = Trainer.training_step

    def dies(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 6:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(Killed):
        adapt(project, "metals")
    smaller = (
        "adapt.epochs=4",
        "adapt.checkpoint_minutes=5",
        "adapt.micro_batch_size=2",
        "adapt.gradient_checkpointing=true",
    )
    again = adapt(load_project(project.root, smaller), "metals")
    assert steps[6] == 5  # it went on after five whole steps
    a, b = weights(whole / "expert"), weights(again / "expert")
    assert all((a[name] - b[name]).norm() <= 1e-4 * max(1e-2, float(a[name].norm())) for name in a)


def test_an_unfinished_run_with_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tiny(tmp_path / "p")
    monkeypatch.setattr(Trainer, "training_step", lambda *_, **__: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        adapt(project, "metals")
    described = project.run("metals", "adapt.unfinished") / "inputs.json"
    with pytest.raises(
        MismatchError, match=r"unfinished run with other inputs \(settings.rank: 4 there, 8 here\)"
    ):
        adapt(load_project(project.root, ("adapt.epochs=4", "adapt.rank=8")), "metals")
    described.write_text("{")
    with pytest.raises(
        ArtifactError, match=r"runs/metals/adapt.unfinished/inputs.json cannot be read; remove"
    ):
        adapt(project, "metals")


def test_what_a_kill_leaves_behind_a_finished_stage_is_cleared(tmp_path: Path) -> None:
    project = tiny(tmp_path / "p")
    adapt(project, "metals")
    unfinished = project.run("metals", "adapt.unfinished")
    unfinished.mkdir()
    (unfinished / "inputs.json").write_text('{"settings": "of a run whose result stands"}')
    adapt(project, "metals")
    assert not unfinished.exists()


def test_flash_attention_that_is_not_installed_is_named(tmp_path: Path) -> None:
    project = tiny(tmp_path / "p", "expert.attention=flash_attention_2")
    with pytest.raises(MissingExtraError, match="pip install flash-attn"):
        adapt(project, "metals")


def test_a_build_loads_the_expert_once_for_its_banks_once_to_tune_and_once_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gag.stages import align, build
    from gag.stages import readouts as reading
    from gag.training import sft

    loaded: list[str] = []

    def counted(settings, root):
        loaded.append(settings.model)
        return load_backbone(settings, root)

    for module in (align, reading, sft, sys.modules["gag.routing.state"]):
        monkeypatch.setattr(module, "load_backbone", counted)
    build.build(tiny(tmp_path / "p"), ["metals", "plants"])
    assert loaded.count("models/base") == 2  # an alignment for each domain
    assert (
        loaded.count("models/expert") == 1 + 2 * 2 + 1
    )  # banks; each domain's tuning and reading; the router


@pytest.mark.parametrize(("supported", "half"), [(True, torch.bfloat16), (False, torch.float16)])
def test_an_old_gpu_tunes_in_float16(
    supported: bool, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gag.training.sft import _half

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert _half(torch.device("cuda")) == half
    assert _half(torch.device("cpu")) is None and _half(torch.device("mps")) is None


@pytest.mark.parametrize("most", [2**28, 0], ids=["whole", "in tiles"])
def test_the_answers_loss_is_trls_own(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import SFTTrainer

    from gag.training import answer_loss

    monkeypatch.setattr(answer_loss, "MOST_LOGITS", most)
    ours = adapt(tiny(tmp_path / "ours", "adapt.micro_batch_size=2"), "metals")
    monkeypatch.setattr("gag.training.answer_loss.trainer_class", lambda *model, packed: SFTTrainer)
    theirs = adapt(tiny(tmp_path / "theirs", "adapt.micro_batch_size=2"), "metals")
    losses = [
        [row["loss"] for _, row in read_rows(folder / "expert.log.jsonl") if "loss" in row]
        for folder in (ours, theirs)
    ]
    assert len(losses[0]) > 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    a, b = (weights(folder / "expert") for folder in (ours, theirs))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_other_readouts_share_the_texts_and_not_by_an_id_that_rows_share(tmp_path: Path) -> None:
    root = write_tiny_project(tmp_path, evaluation={"variants": {"last": {"readout": {"pooling": "last"}}}})
    data = root / "data" / "metals.jsonl"
    for ids in ("of their own", "of one document"):
        rows = [row for _, row in read_rows(data)]
        if ids == "of one document":
            write_rows(data, [row | {"id": "document"} for row in rows])
        project = load_project(root)
        adapt(project, "metals")
        texts = [
            read_store(readouts(one, "metals") / "align").texts for one in (project, project.under("last"))
        ]
        assert texts[0] == texts[1] and len(set(texts[0])) > 2

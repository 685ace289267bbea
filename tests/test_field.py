"""Other people's inputs: models, rows and settings as they have them, each with what its user expects."""

import json
import os
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gag import GAG
from gag.errors import (
    ArtifactError,
    DataError,
    GagError,
    MismatchError,
    MissingExtraError,
    RoutingError,
    SettingsError,
)
from gag.evaluation.metrics import contains, contains_published, exact, f1
from gag.evaluation.retrieval import bm25
from gag.models.language_model import Request, generate, pad_left
from gag.models.loading import load_backbone
from gag.planning.plan import plan
from gag.project.artifacts import locked
from gag.project.parsing import override, read_yaml
from gag.project.project import load_project
from gag.project.rows import Passage, read_examples, write_rows
from gag.project.settings import ModelSettings
from gag.readout.vocabulary import load_vocabulary
from gag.stages.adapt import adapt
from gag.stages.build import build
from tests.conftest import TOKENIZER, make_model, write_tiny_project
from tests.tokenizers_of_kinds import TEMPLATES, gemma_like
from tools.families.checks import write_project, write_rows_and_settings
from tools.families.shapes import write_model


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused_before_tuning(root: Path, reason: str, error: type[GagError] = GagError) -> str:
    """A build ends in one line, and nothing was tuned."""
    with pytest.raises(error, match=reason) as caught:
        build(load_project(root), ["m"])
    assert (
        not (root / "runs" / "m" / "adapt").exists()
        and not (root / "runs" / "m" / "adapt.unfinished").exists()
    )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def built(root: Path) -> GAG:
    build(load_project(root), ["m"])
    return GAG.open(root)


# tokenizers and templates


def test_lines_tabs_and_runs_of_spaces_are_text_where_they_are_added_tokens(tmp_path: Path) -> None:
    for role, width in (("base", 32), ("expert", 24)):
        write_model("gemma3_text", tmp_path / "models" / role, width, tokenizer=gemma_like())
    write_rows_and_settings(tmp_path)
    rows = [
        {"instruction": f"Name it\tat  number {i}?", "input": "in\n\ntwo lines", "output": f"one\ntwo {i}"}
        for i in range(12)
    ]
    write_rows(tmp_path / "data" / "m.jsonl", rows)
    gag = built(tmp_path)
    assert gag.ask("What is\tin  it?\nTell <table></h1>", "m").tokens_added == 1


@pytest.mark.parametrize("template", ["no_system", "drops_system", "alternates"])
def test_a_chat_model_without_a_system_turn_is_an_expert(template: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "qwen3")
    for role in ("base", "expert"):
        (root / "models" / role / "chat_template.jinja").write_text(TEMPLATES[template])
    assert built(root).ask("What is it?", "m").tokens_added == 1


def test_an_empty_prompt_of_the_expert_is_no_system_turn(tmp_path: Path) -> None:
    root = write_project(tmp_path, "qwen3")
    project = load_project(root, ("domains.m.prompts.expert=''",))
    assert project.inputs("m").prompts.expert == ""
    assert adapt(project, "m").is_dir()


def padded_tokenizer(count: int, special: bool) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    if special:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    else:
        tokenizer.add_tokens([f"word{i}" for i in range(count)])
    return tokenizer


def test_the_number_of_padding_does_not_matter(tmp_path: Path) -> None:
    tokenizer = padded_tokenizer(1, special=True)
    for role, width in (("base", 32), ("expert", 24)):
        folder = tmp_path / "models" / role
        write_model("llama", folder, width, 0, tokenizer, vocab_size=len(tokenizer) - 1, pad_token_id=None)
    root = write_rows_and_settings(tmp_path)
    assert built(root).ask("What is it?", "m").tokens_added == 1


@pytest.mark.parametrize("role", ["base", "expert"])
def test_words_beyond_the_embeddings_are_refused(role: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "llama")
    tokenizer = padded_tokenizer(3, special=False)
    tokenizer.save_pretrained(root / "models" / role)
    said = refused_before_tuning(root, "3 tokens more than its 2688 embeddings", MismatchError)
    assert "'word0'" in said and "resize" in said
    with pytest.raises(MismatchError, match="3 tokens more"):
        plan(load_project(root), "m")


def test_a_template_whose_end_is_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    root = write_project(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|stop|>")
    tokenizer.save_pretrained(root / "models" / "base")
    refused_before_tuning(root, "1 tokens more than its 2688 embeddings .*<.stop.>", MismatchError)


def test_an_end_that_the_config_does_not_know_ends_an_answer(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m", eos_token_id=7)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    model = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    assert {7, model.prompts.end} == set(model.stops)


# models that are not what they say


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "hqq"])
@pytest.mark.parametrize("role", ["base", "expert"])
def test_a_quantised_model_names_its_package(method: str, role: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "qwen3")
    set_config(root / "models" / role, quantization_config={"quant_method": method, "bits": 4})
    said = refused_before_tuning(root, f"quantised with {method}, which needs the package", MissingExtraError)
    assert "pip install" in said
    with pytest.raises(MissingExtraError, match=method):
        plan(load_project(root), "m")


@pytest.mark.parametrize("family", ["gemma2", "bloom", "gptj", "gpt_oss", "mpt"])
def test_a_model_without_sdpa_takes_eager_attention(family: str, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / family)
    model = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    assert model.model.config._attn_implementation == "eager"


def drop(folder: Path, part: str) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    save_file(kept, path, {"format": "pt"})


def spoil(folder: Path, part: str, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if part in name:
            tensor.view(-1)[len(tensor.view(-1)) // 2] = value
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    "part", ["layers.1.mlp", "embed_tokens", "model.norm.weight", "layers.0.self_attn.q_proj"]
)
def test_missing_tensors_are_refused(part: str, tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m", tie_word_embeddings=True)
    drop(folder, part)
    with pytest.raises(SettingsError, match=r"lacks \d+ of its tensors .*whole model again"):
        load_backbone(ModelSettings(model=str(folder)), tmp_path)


def test_a_head_that_is_said_to_be_there_and_is_not_is_refused(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m", tie_word_embeddings=True)
    set_config(folder, tie_word_embeddings=False)
    with pytest.raises(SettingsError, match="lm_head"):
        load_backbone(ModelSettings(model=str(folder)), tmp_path)


def test_a_head_of_its_own_counts_though_the_config_calls_it_tied(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m", tie_word_embeddings=False)
    honest = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    set_config(folder, tie_word_embeddings=True)
    liar = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    states = torch.randn(2, 32)
    assert torch.equal(honest.logits(states), liar.logits(states))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["layers.1.mlp.up_proj", "embed_tokens", "lm_head"])
def test_weights_that_are_no_numbers_are_refused(part: str, value: float, tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m", tie_word_embeddings=False)
    spoil(folder, part, value)
    with pytest.raises(SettingsError, match=f"no numbers .in .*{part}"):
        load_backbone(ModelSettings(model=str(folder)), tmp_path)


def fingerprint(folder: Path, **changes: Any) -> str:
    return load_backbone(ModelSettings(model=str(folder), **changes), folder.parent).fingerprint


@pytest.mark.parametrize("family", ["gpt2", "bloom", "falcon", "gpt_neox", "opt", "qwen3_moe", "gemma3"])
def test_a_change_in_any_layer_or_tensor_is_another_model(family: str, tmp_path: Path) -> None:
    layers = "n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers"
    more = {} if family in ("qwen3_moe", "gemma3") else {layers: 5}
    folder = write_model(family, tmp_path / "m", **more)
    before = fingerprint(folder)
    path = folder / "model.safetensors"
    whole = load_file(path)
    vision = [name for name in whole if "vision" in name or "multi_modal" in name]
    for name in sorted(whole.keys() - set(vision)):
        if whole[name].is_floating_point() and "masked_bias" not in name and not name.endswith("attn.bias"):
            changed = dict(whole)
            changed[name] = whole[name] + 0.5
            save_file(changed, path, {"format": "pt"})
            assert fingerprint(folder) != before, name
    save_file(whole, path, {"format": "pt"})
    assert fingerprint(folder) == before


def test_a_fingerprint_is_of_the_files_and_not_of_their_use_or_the_library(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("one two three", truncation=True, max_length=2)  # as many fine-tunes are saved
    tokenizer.save_pretrained(folder)
    assert "truncation" in (folder / "tokenizer.json").read_text()
    model = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    model.prompts.plain("What is it?")
    assert model.fingerprint == fingerprint(folder)
    set_config(
        folder, transformers_version="4.40.0", torch_dtype="float32", use_cache=False, _name_or_path="x"
    )
    assert model.fingerprint == fingerprint(folder)
    set_config(folder, rms_norm_eps=1e-5)
    assert model.fingerprint != fingerprint(folder)
    config = json.loads((folder / "config.json").read_text())
    assert not set(model.stated) - set(config) and "chunk_size_feed_forward" not in model.stated


# positions and budgets


def test_a_budget_beyond_the_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    root = write_project(tmp_path, "gpt2")
    for role in ("base", "expert"):
        set_config(root / "models" / role, n_positions=64)
        drop_positions(root / "models" / role, 64)
    for key, value, name in (
        ("readout", {"max_new_tokens": 100, "batch_tokens": 2000}, "readout.max_new_tokens is 100"),
        ("decoding", {"max_new_tokens": 60}, "decoding.max_new_tokens is 60"),
    ):
        write_rows_and_settings(root, **{key: value})
        said = refused_before_tuning(root, f"{name}, and models/.* has positions for 64", SettingsError)
        assert "or less" in said
        with pytest.raises(SettingsError, match=name):
            plan(load_project(root), "m")
    write_rows_and_settings(root)
    gag = built(root)
    long = "What is in the sample? " * 40
    with pytest.raises(RoutingError, match=r"takes \d+ tokens .* has positions for 64"):
        gag.ask(long, "m")
    with pytest.raises(RoutingError, match=r"takes \d+ tokens .* has positions for 64"):
        gag.ask(long, "general")
    answers = gag.ask(["What is it?", long, "Which?"], "m")
    assert [answer.finish == "refused" for answer in answers] == [False, True, False]


def drop_positions(folder: Path, count: int) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("wpe.weight"))
    save_file(tensors | {name: tensors[name][:count].clone()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapt": {"max_tokens": 4096}, "rows": ("What? " * 8, "x " * 200)}, "the longest row of m is"),
        ({"rows": ("What? " * 60, "x")}, "shorten the questions|shorten the rows"),
        ({"corpus": True, "pretrain": {"block_tokens": 512}}, "pretrain.block_tokens is 512"),
    ],
)
def test_rows_beyond_the_positions_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "llama")
    for role in ("base", "expert"):
        set_config(root / "models" / role, max_position_embeddings=128)
    rows, corpus = changes.pop("rows", None), changes.pop("corpus", False)
    write_rows_and_settings(root, **changes)
    if rows:
        examples = [{"question": f"{i} {rows[0]}", "answer": f"{i} {rows[1]}"} for i in range(12)]
        write_rows(root / "data" / "m.jsonl", examples)
    if corpus:
        write_rows(root / "data" / "corpus.jsonl", [{"text": f"fact {i}"} for i in range(30)])
        content = yaml.safe_load((root / "gag.yaml").read_text())
        content["domains"]["m"]["corpus"] = "data/corpus.jsonl"
        (root / "gag.yaml").write_text(yaml.safe_dump(content))
    refused_before_tuning(root, reason)


def test_a_batch_beyond_the_memory_is_halved(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gag.models.generation import TransformersGenerator
    from gag.models.language_model import Request, generate

    requests = [
        Request(base.embed(base.prompts.plain(q)), 3) for q in ("a?", "What b?", "c", "And what is d?", "e")
    ]
    wanted = generate(base, requests)
    run, sizes = TransformersGenerator._run, []

    def small(self: Any, embeds: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(embeds))
        if len(embeds) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, embeds, *others)

    monkeypatch.setattr(TransformersGenerator, "_run", small)
    assert [row.ids for row in generate(base, requests)] == [row.ids for row in wanted]
    assert sizes == [5, 2, 2, 2, 2, 2, 2, 1, 1, 1]
    monkeypatch.setattr(
        TransformersGenerator, "_run", lambda self, embeds, *o: small(self, embeds.repeat(3, 1, 1))
    )
    with pytest.raises(SettingsError, match="one prompt does not fit in memory"):
        generate(base, requests[:1])


# files


@pytest.mark.parametrize(
    ("family", "rename"),
    [
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("gemma3", lambda name: name),
        ("opt", lambda name: name.removeprefix("model.")),
        ("qwen3", lambda name: f"language_model.{name}"),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_the_table_is_found_under_any_name(family: str, rename: Any, sharded: bool, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / "m")
    model = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    parts = {"model.safetensors": tensors}
    if sharded:
        names = sorted(tensors)
        half = len(names) // 2
        parts = {
            f"model-{i}.safetensors": {n: tensors[n] for n in some}
            for i, some in enumerate((names[:half], names[half:]))
        }
        index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, some in parts.items():
        save_file(some, folder / file, {"format": "pt"})
    table = load_vocabulary(ModelSettings(model=str(folder)), tmp_path, model.device).table
    assert torch.equal(table.float(), model.embeddings)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_whoever_may_read_a_domains_folder_may_read_its_files(tuning: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "qwen3", tuning)
    old = os.umask(0o027)
    try:
        build(load_project(root), ["m"])
    finally:
        os.umask(old)
    for path in (root / "domains" / "m").rglob("*"):
        wanted = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_data_may_be_links(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project", "qwen3")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root / "data", elsewhere)
    (root / "data").symlink_to(elsewhere, target_is_directory=True)
    shutil.move(elsewhere / "m.jsonl", tmp_path / "rows.jsonl")
    (elsewhere / "m.jsonl").symlink_to(tmp_path / "rows.jsonl")
    assert len(load_project(root).inputs("m").taught) > 0
    (elsewhere / "m.jsonl").unlink()
    (elsewhere / "m.jsonl").symlink_to("m.jsonl")  # of itself
    with pytest.raises(SettingsError, match="does not exist"):
        load_project(root).inputs("m")


@pytest.mark.parametrize(
    ("family", "buffer"), [("deepseek_v3", "e_score_correction_bias"), ("gemma4_text", "layer_scalar")]
)
def test_a_stored_buffer_belongs_to_the_model(family: str, buffer: str, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / "m")
    before, tensors = fingerprint(folder), load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(buffer))
    save_file(tensors | {name: tensors[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    assert fingerprint(folder) != before
    save_file(tensors | {name: tensors[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match="no numbers"):
        fingerprint(folder)


@pytest.mark.parametrize("role", ["base", "expert"])
def test_a_link_to_nothing_in_a_model_is_refused(role: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "qwen3")
    (root / "models" / role / "notes.json").mkdir()
    (root / "models" / role / "model-2.safetensors").symlink_to(tmp_path / "nowhere")
    refused_before_tuning(root, "model-2.safetensors is a link to nothing", SettingsError)


@pytest.mark.parametrize(
    "lie",
    [{"eos_token_id": "</s>"}, {"max_position_embeddings": "1024"}, {"vocab_size": "big"},
     {"rope_parameters": [1]},
     {"num_attention_heads": 0}, {"num_hidden_layers": 0, "layer_types": []}, {"max_position_embeddings": 4}],
)  # fmt: skip
@pytest.mark.parametrize("role", ["base", "expert"])
def test_a_config_that_lies_is_one_line(lie: dict[str, Any], role: str, tmp_path: Path) -> None:
    root = write_project(tmp_path, "llama")
    set_config(root / "models" / role, **lie)
    refused_before_tuning(root, ".")


def test_angles_that_hang_on_the_longest_row_set_the_positions(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "m")
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    set_config(folder, rope_parameters=rope, max_position_embeddings=128)
    assert load_backbone(ModelSettings(model=str(folder)), tmp_path).positions == 128
    set_config(folder, rope_parameters=rope | {"rope_type": "yarn", "original_max_position_embeddings": 128})
    assert load_backbone(ModelSettings(model=str(folder)), tmp_path).positions == 512


# rows and settings


def test_columns_that_nothing_reads_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {"instruction": "And which metal?", "input": f"shelf {i}", "output": "tin", "system": "One word.",
         "history": [["What?", "Sample."]] if i < 3 else [], "rejected": "no" if i == 0 else None,
         "source": "x"}
        for i in range(5)
    ]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_examples(tmp_path / "rows.jsonl")[0].question == "And which metal?\nshelf 0"
    said = capsys.readouterr().err
    assert "`history` (3 of 5 rows), `rejected` (1 of 5 rows), `system` (5 of 5 rows)" in said
    assert "source" not in said
    read_examples(tmp_path / "rows.jsonl")
    assert capsys.readouterr().err == ""  # once is enough


def test_a_column_in_the_place_of_another_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {
        "question": "q",
        "answer": "a",
        "input": "c",
        "output": "b",
        "kto_tag": False,
        " Context": "x",
        "Input": "y",
    }
    write_rows(tmp_path / "others.jsonl", [row, {"question": "p", "answer": "a", "kto_tag": None}])
    read_examples(tmp_path / "others.jsonl")
    said = capsys.readouterr().err
    for name in ("` Context`", "`Input`", "`input`", "`output`", "`kto_tag`"):
        assert f"{name} (1 of 2 rows)" in said


@pytest.mark.parametrize("extra", [["a", "b"], 7, {"k": "v"}, True, 0, []])
def test_an_input_that_is_no_text_is_refused(extra: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"instruction": "Say", "input": extra, "output": "a"}])
    with pytest.raises(DataError, match='rows.jsonl:1 has "input" that is no text'):
        read_examples(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("key", ["id", "group"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, True])
def test_a_name_that_is_no_name_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a", key: value}])
    with pytest.raises(DataError, match=f'needs "{key}"'):
        read_examples(tmp_path / "rows.jsonl")


def test_a_null_id_is_none(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": q, "answer": "a", "id": None} for q in "ab"])
    assert [example.id for example in read_examples(tmp_path / "rows.jsonl")] == ["1", "2"]


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for text in (
        "adapt: {rank: 4}\nadapt: {rank: 8}\n",
        "align:\n  epochs: 1\n  epochs: 2\n",
        "a: 1\n? a\n: 2\n",
    ):
        with pytest.raises(SettingsError, match="stands twice"):
            read_yaml(text)
    with pytest.raises(SettingsError, match="stands twice"):
        override({}, "adapt={rank: 4, rank: 8}")
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match="rows.jsonl:1: 'answer' stands twice"):
        read_examples(tmp_path / "rows.jsonl")


def test_yaml_of_other_kinds_is_read_or_one_line() -> None:
    assert read_yaml("x: &a {k: 1}\ny:\n  <<: *a\n  k: 2\n")["y"] == {"k": 2}
    for text in ("x: !!timestamp bad", "x: !!float ''", "a: !!python/name:os.system"):
        with pytest.raises(SettingsError, match="is not YAML"):
            read_yaml(text)


@pytest.mark.parametrize("name", ["on", "no", "null", "007", "1_000", "2026-01-01", "12"])
def test_names_that_yaml_reads_as_something_else_are_quoted(name: str, tmp_path: Path) -> None:
    from gag.project.example import write_example

    write_example(tmp_path / name, name, "base", "12")
    settings = load_project(tmp_path / name).settings
    assert list(settings.domains) == [name] and settings.expert.model == "12"


def test_a_name_without_quotes_is_refused_with_the_cure(tmp_path: Path) -> None:
    models = "base: {model: a}\nexpert: {model: b}\n"
    for text, place in (
        (f"{models}domains: {{no: {{train: x}}}}\n", "False"),
        ("base: {model: 7}\nexpert: {model: b}\n", "7"),
    ):
        (tmp_path / "gag.yaml").write_text(text)
        with pytest.raises(SettingsError, match=f"YAML reads this as {place}, .*write it in quotes"):
            load_project(tmp_path)


def bert(folder: Path, positions: int, **changes: Any) -> Path:
    """Write an encoder of few positions whose weights are a pytorch_model.bin alone."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "tin", "iron", "?"]
    (folder / "vocab.txt").write_text("\n".join([*words, *map(chr, range(97, 123))]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=36, max_position_embeddings=positions, **shape))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_an_encoder_of_few_positions_in_a_pickle_of_tensors_is_read(tmp_path: Path) -> None:
    from gag.evaluation.bertscore import BertScorer, TransformerStates
    from gag.project.settings import EncoderSettings, RouterSettings
    from gag.routing.encoders import TransformerEncoder

    folder = bert(tmp_path / "bert", 16)
    scorer = BertScorer(TransformerStates(str(folder), 1, tmp_path))
    assert scorer.score(["tin " * 100, "tin"], [("tin",), ("tin",)])[1] == pytest.approx(1)
    chosen = RouterSettings(encoder=EncoderSettings(kind="transformer", model=str(folder)))
    assert TransformerEncoder(chosen, tmp_path).encode(["what is tin? " * 50]).shape == (1, 16)


def test_a_pickle_of_anything_else_is_not_loaded(tmp_path: Path) -> None:
    from gag.evaluation.bertscore import TransformerStates

    folder = bert(tmp_path / "bert", 16)

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(SettingsError, match="holds more than tensors, and is not loaded"):
        TransformerStates(str(folder), 1, tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_judge_that_is_not_there_is_said_before_the_first_answer(tmp_path: Path) -> None:
    from gag.evaluation.evaluate import evaluate
    from gag.evaluation.labelled import read_test_rows

    root = write_project(tmp_path, "qwen3")
    build(load_project(root), ["m"])
    changed = ("evaluation.metrics={'*': [contains, bertscore]}", "evaluation.bertscore=nowhere")
    project = load_project(root, changed)
    with pytest.raises(SettingsError, match=r"evaluation.bertscore nowhere cannot be loaded"):
        evaluate(project, "all", read_test_rows(project, ["m"]))
    assert not (root / "runs" / "evaluation").exists()


def test_evaluations_of_one_name_share_no_folder_and_keep_their_results(tmp_path: Path) -> None:
    from gag.evaluation.evaluate import evaluate, run_name
    from gag.evaluation.labelled import read_labelled

    root = write_project(tmp_path, "qwen3")
    build(load_project(root), ["m"])
    project, files = load_project(root), []
    for place in ("one", "two"):
        files.append(root / place / "rows.jsonl")
        write_rows(files[-1], [{"question": f"What is in {place}?", "answer": "tin", "domain": "m"}])
    folders = []
    for file in (*files, files[0]):
        rows = read_labelled(file, {})
        folders.append(evaluate(project, run_name(project, file, rows), rows).folder)
    assert folders[0] == folders[2] != folders[1] and folders[0] == "runs/evaluation/rows"
    before = (root / folders[0] / "answers.jsonl").read_text()
    other = load_project(root, ("decoding.max_new_tokens=2",))
    rows = read_labelled(files[0], {})
    again = evaluate(other, run_name(other, files[0], rows), rows).folder
    assert again not in folders and (root / folders[0] / "answers.jsonl").read_text() == before
    assert evaluate(project, "rows", rows).folder == folders[0]
    judged = load_project(root, ("evaluation.metrics={'*': [exact]}",))
    summary = (root / folders[0] / "summary.json").read_text()
    moved = evaluate(judged, run_name(judged, files[0], rows), rows).folder
    assert moved not in (*folders, again) and (root / folders[0] / "summary.json").read_text() == summary
    told = [
        [json.loads(line) | {"scores": None} for line in text.splitlines()]
        for text in (before, (root / moved / "answers.jsonl").read_text())
    ]
    assert told[0] == told[1]  # judged anew, not asked anew
    assert json.loads((root / moved / "answers.jsonl").read_text())["scores"]["routed"].keys() == {"exact"}
    for file, spoilt in (("inputs.json", "{"), ("inputs.json", "[]"), ("answers.jsonl", '{"id": "1"}\n')):
        kept = (root / folders[0] / file).read_text()
        (root / folders[0] / file).write_text(spoilt)
        with pytest.raises(ArtifactError, match="move that folder away"):
            evaluate(project, run_name(project, files[0], rows), rows)
        (root / folders[0] / file).write_text(kept)
    assert run_name(project, Path("..jsonl"), rows) == "file"


# metrics and retrieval


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("答案是铂。", "铂"), ("それは白金です", "白金"), ("มันคือทองคำขาว", "ทองคำขาว"),
        ("답은 백금입니다", "백금"),
        ("It takes up CO₂.", "CO2"), ("ＡＢＣ", "ABC"), ("at 1,000 K", "1000 K"), ("at 1000 K", "1,000 K"),
        ("１，０００ Ｋ", "1000 K"), ("12,345,678 of them", "12345678"), ("1\u202f000 K", "1000 K"),
        ("1'000", "1000"),
        ("half: ½", "1/2"), ("−5 degrees", "-5 degrees"), ("ﬁne", "fine"), ("m²", "m2"),
        ("1990–1995", "1990-1995"), ("“silver”", "silver"), ("sil\u00adver", "silver"), ("10²", "10^2"),
        ("1,00,000", "100000"), ("มี ๒๕ ตัว", "25"), ("رقم ١٢", "12"),
    ],
)  # fmt: skip
def test_a_right_answer_is_right_in_any_script_and_width(said: str, gold: str) -> None:
    assert contains(said, (gold,)) and f1(said, (gold,)) > 0
    assert exact(gold, (said,)) == exact(said, (gold,))


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("1,2,3", "123"),
        ("3,14", "314"),
        ("10,0000", "100000"),
        ("铂", "铁"),
        ("11000 K", "1,000 K"),
        ("1½", "11/2"),
        ("102", "10²"),
        ("0,125", "0125"),
    ],
)
def test_a_wrong_answer_stays_wrong(said: str, gold: str) -> None:
    assert not contains(said, (gold,))


def test_the_published_measure_stands_beside() -> None:
    assert not contains_published("答案是铂。", ("铂",)) and not contains_published("at 1,000 K", ("1000 K",))
    for said, gold in (
        ("It is Silver foam.", "silver foam"),
        ("naïve", "naïve"),
        ("a gold-tin alloy", "gold-tin"),
    ):
        assert contains(said, (gold,)) == contains_published(said, (gold,)) is True


@pytest.mark.parametrize(
    ("passages", "asked", "best"),
    [
        (["number 0", "number 1", "number 7"], "Where is 7?", 2),
        (["the answer is B", "the answer is A", "the answer is D"], "Which is A?", 1),
        (["x is C", "x is D"], "D?", 1),
        (["铁在样品中", "铂在样品中", "锡在样品中"], "铂在哪里?", 1),
        (["白金です", "銅です"], "銅は?", 1),
    ],
)
def test_bm25_finds_digits_letters_and_characters(passages: list[str], asked: str, best: int) -> None:
    found = bm25([Passage(str(i), text) for i, text in enumerate(passages)])([asked], 2)
    assert found[0][0] == best


def test_bm25_over_nothing_finds_nothing_and_says_so(capsys: pytest.CaptureFixture) -> None:
    search = bm25([Passage("0", "?!"), Passage("1", "...")])
    assert "finds nothing" in capsys.readouterr().err
    assert search(["What?"], 5) == [[0, 1]]
    assert bm25([Passage("0", "tin"), Passage("1", "iron")])(["zebra", ""], 1) == [[0], [0]]


# platforms


@pytest.mark.parametrize("oddity", ["file", "folder", "runs"])
def test_a_lock_that_is_none_is_one_line(oddity: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    if oddity == "runs":
        runs.write_text("x")
    else:
        runs.mkdir()
        (runs / ".lock").mkdir() if oddity == "folder" else (runs / ".lock").write_text("old\n" * 999)
    with pytest.raises(ArtifactError, match="cannot be locked"), locked(runs):
        raise AssertionError("it is locked")


def test_the_verbs_run_without_fcntl(tmp_path: Path) -> None:
    """As on Windows, which has none."""
    root = write_project(tmp_path, "qwen3")
    blocked = "import sys; sys.modules.update(fcntl=None); from gag.commands.app import main; main()"
    for verb in (["--help"], ["init", str(tmp_path / "new")], ["prototypes", "general"], ["domains", "list"]):
        where = [] if verb[0] in ("--help", "init") else ["--project", str(root)]
        done = subprocess.run(
            [sys.executable, "-c", blocked, *verb, *where], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_a_base_is_quantised_while_it_is_loaded(tmp_path: Path) -> None:
    """It answers by itself as in any batch, is another base to a domain, and says what is missing."""
    folder = make_model(tmp_path / "base", 64, 0, head_dim=32)
    wanted = ModelSettings(model=str(folder), quantization="int8", device="cpu")
    plain = load_backbone(ModelSettings(model=str(folder), device="cpu"), tmp_path)
    if find_spec("bitsandbytes") is None:
        with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
            load_backbone(wanted, tmp_path)
        return
    base = load_backbone(wanted, tmp_path)
    stored = [sum(p.nbytes for p in model.decoder_layers.parameters()) for model in (base, plain)]
    assert stored[0] < 0.4 * stored[1] and base.fingerprint != plain.fingerprint
    requests = [Request(base.prompts.plain(question), 6) for question in ("Why?", "What is tin, and where?")]
    together = [one.ids for one in generate(base, requests)]
    assert together == [generate(base, [request])[0].ids for request in requests]
    found = []
    for model in (base, plain):
        vectors = torch.stack([model.embed([9]), model.embed([70])]).requires_grad_(True)
        states = model.states(pad_left([torch.cat([model.embed([5, 6]), own]) for own in vectors]))
        states.sum().backward()
        found.append(vectors.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.9  # an aligned vector's way is the base's
    with pytest.raises(SettingsError, match="nf4 has no gradients on a CPU"):
        load_backbone(wanted.model_copy(update={"quantization": "nf4"}), tmp_path)


def test_an_expert_is_not_quantised(tmp_path: Path) -> None:
    root = write_tiny_project(tmp_path)
    with pytest.raises(SettingsError, match="only a base is quantised"):
        load_project(root, ("expert.quantization=nf4",))

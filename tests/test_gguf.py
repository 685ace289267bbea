"""Models in GGUF files: loaded as transformers loads them, plain afterwards, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gag.errors import SettingsError
from gag.models.loading import load_backbone
from gag.models.source import model_source
from gag.project.keys import model_key
from gag.project.project import load_project
from gag.project.settings import ModelSettings
from gag.readout.vocabulary import load_vocabulary
from gag.stages.build import build
from tests.conftest import TOKENIZER, make_model, write_tiny_project

gguf = pytest.importorskip("gguf")
WIDTH, LAYERS, HEADS = 32, 2, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path, kind: Any = None, architecture: str = "llama") -> Path:
    """Write a random two-layer Llama with the bundled tokenizer's tokens, as one file."""
    import json

    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocabulary = dict(tokenizer["model"]["vocab"])
    special = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    vocabulary |= special
    size = max(vocabulary.values()) + 1
    names = {number: token for token, number in vocabulary.items()}
    merges = [" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]]
    end = special.get("<|im_end|>", max(special.values()))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, initializer_range=0.2,
        )
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([names.get(i, f"<unused{i}>") for i in range(size)])
    writer.add_token_types([3 if names.get(i) in special else 1 for i in range(size)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_chat_template(TEMPLATE)
    weights = model.state_dict()
    inner = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    tensors["output_norm.weight"] = weights["model.norm.weight"]
    for layer in range(LAYERS):
        for name, short in inner.items():
            tensors[f"blk.{layer}.{short}.weight"] = weights[f"model.layers.{layer}.{name}.weight"]
    for name, tensor in tensors.items():
        values = tensor.numpy()
        quantised = kind is not None and values.ndim == 2 and "embd" not in name
        writer.add_tensor(
            name,
            gguf.quants.quantize(values, kind) if quantised else values,
            raw_dtype=kind if quantised else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [None, "Q8_0", "Q4_1"])
def test_a_gguf_file_is_loaded_as_transformers_loads_it_and_is_plain(
    kind: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    quant = getattr(gguf.GGMLQuantizationType, kind) if kind else None
    write_gguf(tmp_path / "models" / "m.gguf", quant)
    capsys.readouterr()
    model = load_backbone(ModelSettings(model="models/m.gguf"), tmp_path)
    assert "tensors" not in capsys.readouterr().err  # no bar of transformers' own
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "models", gguf_file="m.gguf", dtype=torch.float32)
    ids = model.prompts.plain("What is tin?")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models", gguf_file="m.gguf")
    chat = [{"role": "user", "content": "What is tin?"}]
    assert ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert torch.equal(model.model(torch.tensor([ids])).logits, stock(torch.tensor([ids])).logits)
    assert not hasattr(model.model.config, "quantization_config")
    model.model.save_pretrained(tmp_path / "saved")  # what is quantised cannot be saved
    assert model.facts.model == "models/m.gguf"
    settings = ModelSettings(model="models/m.gguf")
    assert torch.equal(load_vocabulary(settings, tmp_path, torch.device("cpu")).table, model.table)


def test_a_project_of_gguf_files_builds_and_answers(tmp_path: Path) -> None:
    from gag.engine.engine import GAG

    root = write_tiny_project(tmp_path)
    write_gguf(root / "models" / "m.gguf")
    text = (root / "gag.yaml").read_text()
    text = text.replace("model: models/base", "model: models/m.gguf").replace(
        "models/expert", "models/m.gguf"
    )
    (root / "gag.yaml").write_text(text)
    project = load_project(root, ("preset=vocabulary",))
    build(project, ["metals"])
    assert GAG.open(project).ask("What is in metals number 1?", domain="metals").tokens_added == 1


def test_the_key_follows_the_file(tmp_path: Path) -> None:
    settings = ModelSettings(model="m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"one")
    first = model_key(settings, tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"two")
    assert model_key(settings, tmp_path) != first


def test_a_file_on_the_hub_is_named_with_its_repository(tmp_path: Path) -> None:
    found = model_source(ModelSettings(model="owner/name/q4/model.gguf"), tmp_path)
    assert found.where == "owner/name" and found.gguf == "q4/model.gguf"
    assert found.load(lambda where, **told: told) == {
        "revision": None,
        "trust_remote_code": False,
        "gguf_file": "q4/model.gguf",
    }


@pytest.mark.parametrize("name", ["nowhere.gguf", "/nowhere/at/all.gguf", "models/nowhere.gguf"])
def test_a_file_that_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(SettingsError, match=r"there is no file .*nowhere.*gguf|there is no file /nowhere"):
        load_backbone(ModelSettings(model=name), tmp_path)


def test_a_file_cut_short_or_of_no_known_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "head.gguf").write_bytes(whole[:100])
    (tmp_path / "text.gguf").write_text("no model")
    write_gguf(tmp_path / "odd.gguf", architecture="martian")
    for name in ("cut", "head", "text", "odd"):
        with pytest.raises(
            SettingsError, match=f"{name}.gguf cannot be loaded: .*; name a whole model"
        ) as caught:
            load_backbone(ModelSettings(model=f"{name}.gguf"), tmp_path)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_lacks_a_merged_token_is_refused_in_a_line(tmp_path: Path) -> None:
    """tokenizers raises a bare Exception then."""
    file = make_model(tmp_path / "model", 32, 0) / "tokenizer.json"
    content = json.loads(file.read_text())
    merge = content["model"]["merges"][5]
    content["model"]["vocab"].pop("".join(merge) if isinstance(merge, list) else merge.replace(" ", ""))
    file.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"model cannot be loaded: .*; name a whole model folder"):
        load_backbone(ModelSettings(model="model"), tmp_path)

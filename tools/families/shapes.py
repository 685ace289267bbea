"""Small random models of many families, in the shapes of their published configs: what tests and docs run.

`python -m tools.families` runs them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TOKENIZER = Path(str(files("gag.pocket") / "assets" / "tokenizer"))
WINDOW = 64  # of sliding layers: shorter than the longest prompts of the checks
Shape = dict[str, Any]


def _common(w: int) -> Shape:
    """Return what nearly all configs call by the same names."""
    return {
        "hidden_size": w, "intermediate_size": 2 * w, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": w // 2, "initializer_range": 0.2,
        "max_position_embeddings": 1024,
    }  # fmt: skip


def _windowed(w: int) -> Shape:
    layers = ["sliding_attention", "full_attention"]
    return _common(w) | {"sliding_window": WINDOW, "layer_types": layers, "query_pre_attn_scalar": w // 2}


def _gpt2(w: int) -> Shape:
    return {"n_embd": w, "n_layer": 2, "n_head": 2, "n_positions": 1024, "initializer_range": 0.2}


def _moe(w: int) -> Shape:
    return _common(w) | {
        "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": w,
    }  # fmt: skip


def _linear(w: int) -> Shape:
    return _common(w) | {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip


def _mamba(w: int) -> Shape:
    return _common(w) | {
        "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": w // 2, "mamba_n_groups": 1,
        "mamba_expand": 2,
        "mamba_d_ssm": 2 * w, "mamba_chunk_size": 16, "mamba_d_conv": 4,
    }  # fmt: skip


def _gemma4(w: int) -> Shape:
    return _windowed(w) | {
        "num_kv_shared_layers": 0,
        "global_head_dim": w // 2,
        "hidden_size_per_layer_input": 0,
    }


def _per_layer(w: int) -> Shape:
    return _gemma4(w) | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 2688}


@dataclass(frozen=True)
class Family:
    """A family: its config's type, its shape by width, and published models of it."""

    config: str
    shape: Callable[[int], Shape]
    like: str


FAMILIES = {
    "qwen2": Family("qwen2", _common, "Qwen2, Qwen2.5"),
    "qwen3": Family("qwen3", _common, "Qwen3"),
    "qwen3_moe": Family("qwen3_moe", _moe, "Qwen3-30B-A3B"),
    "qwen3_next": Family(
        "qwen3_next",
        lambda w: _linear(w) | _moe(w) | {"shared_expert_intermediate_size": w, "mlp_only_layers": []},
        "Qwen3-Next",
    ),
    "qwen3_5_text": Family("qwen3_5_text", _linear, "Qwen3.5"),
    "llama": Family("llama", _common, "Llama 2, 3, TinyLlama, SmolLM2"),
    "mistral": Family(
        "mistral", lambda w: _common(w) | {"sliding_window": WINDOW}, "Mistral 0.1 (window), 0.2, 0.3, Nemo"
    ),
    "mixtral": Family("mixtral", lambda w: _moe(w) | {"sliding_window": None}, "Mixtral"),
    "ministral3": Family("ministral3", _common, "Ministral 3"),
    "phi": Family("phi", _common, "Phi-1.5, Phi-2"),
    "phi3": Family("phi3", _common, "Phi-3, Phi-3.5, Phi-4"),
    "gemma": Family("gemma", _common, "Gemma 1"),
    "gemma2": Family("gemma2", _windowed, "Gemma 2"),
    "gemma3_text": Family("gemma3_text", _windowed, "Gemma 3 270M, 1B"),
    "gemma4_text": Family("gemma4_text", _gemma4, "Gemma 4, dense"),
    "gemma4_per_layer": Family("gemma4_text", _per_layer, "Gemma 4 E2B, E4B"),
    "olmo2": Family("olmo2", _common, "OLMo 2"),
    "olmo3": Family(
        "olmo3",
        lambda w: (
            _common(w) | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
        ),
        "OLMo 3",
    ),
    "olmoe": Family("olmoe", _moe, "OLMoE"),
    "granite": Family(
        "granite",
        lambda w: (
            _common(w)
            | {
                "embedding_multiplier": 3.0,
                "logits_scaling": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.2,
            }
        ),
        "Granite 3",
    ),
    "granitemoehybrid": Family(
        "granitemoehybrid",
        lambda w: (
            _mamba(w)
            | {
                "layer_types": ["mamba", "attention"],
                "num_local_experts": 0,
                "shared_intermediate_size": 2 * w,
            }
        ),
        "Granite 4 hybrid",
    ),
    "smollm3": Family("smollm3", _common, "SmolLM3"),
    "cohere": Family("cohere", _common, "Command R"),
    "cohere2": Family(
        "cohere2",
        lambda w: (
            _common(w) | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
        ),
        "Command R7B, Command A",
    ),
    "starcoder2": Family("starcoder2", _common, "StarCoder 2"),
    "glm4": Family("glm4", _common, "GLM-4"),
    "gpt_neox": Family("gpt_neox", _common, "Pythia"),
    "gpt_neo": Family(
        "gpt_neo",
        lambda w: {
            "hidden_size": w,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["local", "global"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": 1024,
            "initializer_range": 0.2,
        },
        "GPT-Neo",
    ),
    "gptj": Family("gptj", lambda w: _gpt2(w) | {"rotary_dim": 8}, "GPT-J"),
    "gpt2": Family("gpt2", _gpt2, "GPT-2, DistilGPT-2"),
    "gpt_bigcode": Family("gpt_bigcode", _gpt2, "StarCoder 1"),
    "opt": Family(
        "opt",
        lambda w: {
            "hidden_size": w,
            "word_embed_proj_dim": w,
            "ffn_dim": 2 * w,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 1024,
            "init_std": 0.2,
        },
        "OPT",
    ),
    "opt_350m": Family(
        "opt",
        lambda w: {
            "hidden_size": w,
            "word_embed_proj_dim": w // 2,
            "ffn_dim": 2 * w,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 1024,
            "init_std": 0.2,
            "do_layer_norm_before": False,
        },
        "OPT-350m",
    ),
    "bloom": Family(
        "bloom",
        lambda w: {"hidden_size": w, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
        "BLOOM, BLOOMZ",
    ),
    "falcon": Family(
        "falcon",
        lambda w: {
            "hidden_size": w,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "initializer_range": 0.2,
            "max_position_embeddings": 1024,
        },
        "Falcon",
    ),
    "falcon_h1": Family("falcon_h1", _mamba, "Falcon-H1"),
    "lfm2": Family(
        "lfm2",
        lambda w: (
            _common(w)
            | {
                "layer_types": ["conv", "full_attention"],
                "conv_L_cache": 3,
                "block_auto_adjust_ff_dim": False,
            }
        ),
        "LFM2",
    ),
    "gpt_oss": Family(
        "gpt_oss",
        lambda w: (
            _moe(w) | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
        ),
        "gpt-oss",
    ),
    "llama4_text": Family(
        "llama4_text",
        lambda w: (
            _common(w)
            | {
                "attention_chunk_size": WINDOW,
                "num_local_experts": 2,
                "intermediate_size_mlp": 2 * w,
                "interleave_moe_layer_step": 2,
                "layer_types": ["chunked_attention", "full_attention"],
            }
        ),
        "Llama 4 (text)",
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        lambda w: (
            _common(w)
            | {
                "num_key_value_heads": 2,
                "head_dim": 8,
                "kv_lora_rank": 8,
                "q_lora_rank": 8,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "moe_intermediate_size": w,
                "n_shared_experts": 1,
            }
        ),
        "DeepSeek-V3",
    ),
    "stablelm": Family(
        "stablelm",
        lambda w: {k: v for k, v in _common(w).items() if k != "head_dim"} | {"partial_rotary_factor": 0.5},
        "StableLM 2",
    ),
    "bamba": Family("bamba", lambda w: _mamba(w) | {"attn_layer_indices": [1]}, "Bamba"),
    "jamba": Family(
        "jamba",
        lambda w: (
            _common(w)
            | {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "num_experts": 2,
                "mamba_d_state": 8,
                "use_mamba_kernels": False,
            }
        ),
        "Jamba",
    ),
    "mamba2": Family(
        "mamba2",
        lambda w: {
            "hidden_size": w,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": w // 2,
            "n_groups": 1,
            "chunk_size": 16,
            "expand": 2,
        },
        "Mamba 2",
    ),
    "exaone4": Family(
        "exaone4",
        lambda w: (
            _common(w) | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
        ),
        "EXAONE 4",
    ),
    "ernie4_5": Family("ernie4_5", _common, "ERNIE 4.5"),
    "hunyuan_v1_dense": Family("hunyuan_v1_dense", _common, "Hunyuan"),
    "seed_oss": Family("seed_oss", _common, "Seed-OSS"),
    "mpt": Family(
        "mpt",
        lambda w: {"d_model": w, "n_heads": 2, "n_layers": 2, "max_seq_len": 1024, "initializer_range": 0.2},
        "MPT",
    ),
    "nemotron": Family("nemotron", _common, "Nemotron"),
}


def _vision(w: int) -> Shape:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip


WRAPPERS: dict[str, tuple[str, str, Shape]] = {  # (config, family of the text model, more)
    "gemma3": (
        "gemma3",
        "gemma3_text",
        {
            "mm_tokens_per_image": 1,
            "image_token_index": 5,
            "boi_token_index": 6,
            "eoi_token_index": 7,
            "vision_config": _vision(16),
        },
    ),
    "gemma4": (
        "gemma4",
        "gemma4_text",
        {
            "image_token_id": 5,
            "boi_token_id": 6,
            "eoi_token_id": 7,
            "audio_token_id": 8,
            "boa_token_id": 9,
            "eoa_token_id": 10,
            "video_token_id": 11,
        },
    ),
    "qwen3_5": (
        "qwen3_5",
        "qwen3_5_text",
        {
            "image_token_id": 5,
            "video_token_id": 6,
            "vision_start_token_id": 7,
            "vision_end_token_id": 8,
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 32,
            },
        },
    ),
    "llava": (
        "llava",
        "llama",
        {
            "image_token_index": 5,
            "vision_config": {"model_type": "clip_vision_model", **_vision(16), "projection_dim": 16},
        },
    ),
    "mistral3": (
        "mistral3",
        "mistral",
        {"image_token_index": 5, "vision_config": {"model_type": "pixtral", **_vision(16)}},
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        "qwen2",
        {
            "image_token_id": 5,
            "video_token_id": 6,
            "vision_start_token_id": 7,
            "vision_end_token_id": 8,
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
        },
    ),
}


def write_model(
    family: str,
    folder: Path,
    width: int = 32,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **changes: Any,
) -> Path:
    """Write a random model of a family, with the bundled tokenizer or another."""
    words = tokenizer or AutoTokenizer.from_pretrained(TOKENIZER)
    ids = {
        "vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id,
        "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(seed)
    if family in WRAPPERS:
        kind, inner, more = WRAPPERS[family]
        text = FAMILIES[inner].shape(width) | ids | {"model_type": FAMILIES[inner].config}
        config = CONFIG_MAPPING[kind](text_config=text | changes, **more)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    else:
        chosen = FAMILIES[family]
        config = CONFIG_MAPPING[chosen.config](**chosen.shape(width) | ids | changes)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder

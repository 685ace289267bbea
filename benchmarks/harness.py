"""What every benchmark shares: random models at given shapes, alternating rounds, and one form of output."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gag.models.backbone import Backbone

QWEN3 = {  # the published architecture numbers
    "base": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "expert": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
_SMOLLM2 = {  # SmolLM2-135M, base and expert
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
SMALL = {  # for a CPU
    "base": {
        "vocab_size": 8000,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "expert": {
        "vocab_size": 8000,
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "intermediate_size": 768,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
}


SHAPES = {"small": SMALL, "smollm2": {"base": _SMOLLM2, "expert": _SMOLLM2}, "qwen3": QWEN3}


class Ids:
    """What the hot loops ask of a tokenizer: ids for padding and for the end of a turn, and text from ids."""

    pad, end = 0, 1

    def decode(self, ids: list[int]) -> str:
        """Write ids as numbers."""
        return " ".join(map(str, ids))


def make_backbone(role: str, shapes: str, device: str, window: int | None = None) -> Backbone:
    """Make a random frozen model: float32 on a CPU, bfloat16 elsewhere.

    Every other layer may have a window.
    """
    torch.manual_seed(0)
    shape: dict[str, Any] = SHAPES[shapes][role]
    if window:
        kinds = ["sliding_attention", "full_attention"] * (shape["num_hidden_layers"] // 2)
        shape = shape | {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}
    config = Qwen3Config(**shape, eos_token_id=1, pad_token_id=0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = 1
    backbone = Backbone(
        model.eval().requires_grad_(False),
        PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast),
        "random",
        None,
    )
    backbone.__dict__["_prompts"] = Ids()
    return backbone


def options(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every benchmark has; loading shows no progress."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shapes", default="small", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def alternate(ways: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Run the ways in turn, once to warm up and then some rounds -> median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            _finish(device)
            started = time.perf_counter()
            way()
            _finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def report(
    args: Any, name: str, figures: dict[str, float], floors: dict[str, tuple[str, float]], lines: list[str]
) -> None:
    """Print a table, and with --json one object as the last line; a floor is (">=" or "<=", value)."""
    held = {
        key: {"floor": value, "holds": figures[key] >= value if sign == ">=" else figures[key] <= value}
        for key, (sign, value) in floors.items()
    }
    for line in lines:
        print(line)
    for key, value in figures.items():
        floor = (
            f"  floor {floors[key][0]} {floors[key][1]:g}: {'holds' if held[key]['holds'] else 'MISSED'}"
            if key in floors
            else ""
        )
        print(f"{key:<40} {value:>12.4g}{floor}")
    if args.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        print(
            json.dumps(
                {
                    "benchmark": name,
                    "device": device_name(args.device),
                    "versions": versions,
                    "figures": figures,
                    "floors": held,
                }
            )
        )


def device_name(device: str) -> str:
    """Name the device for people."""
    if device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    return torch.cuda.get_device_name()


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()

"""The resident memory of this process."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.harness import SMALL


def warm_up() -> None:
    """Generate with a tiny model, so that the libraries' own pools exist before anything is measured."""
    tiny = SMALL["expert"] | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    ids = torch.randint(2, 8000, (4, 40))
    Qwen3ForCausalLM(Qwen3Config(**tiny, bos_token_id=None, eos_token_id=1, pad_token_id=0)).generate(
        ids, max_new_tokens=8
    )
    sum(torch.randn(512, 512) @ torch.randn(512, 512) for _ in range(4))


def resident() -> int:
    """Return the resident memory of this process after giving free pages back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

"""Which layers of a model LoRA tunes, and how many logits its loss makes at a time."""

from typing import Any

import torch

THIRD_PARTY = (  # said by transformers 5.23 and PEFT 0.21 about what TRL and PEFT do
    "`gradient_checkpointing` is deprecated",
    "`is_gradient_checkpointing` is deprecated",
    "Could not find a config file in",  # beside a GGUF file, which holds it
    "The following (rank|alpha)_pattern keys did not match",  # of a mixture's experts
)

MOST_LOGITS = 2**28  # that a CPU's loss makes at a time, 1 GiB; above, TRL's own loss makes them in tiles


def lora_config(model: torch.nn.Module, rank: int) -> Any:
    """Describe LoRA on all linear layers whose module is called in every forward pass.

    The last projection of a Mamba mixer is not: its kernels read the weights alone. Nor is a router that is a
    linear layer with an output of its own.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    left = []
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):  # a Mamba mixer's own parameters
            left.append(f"{name}.out_proj")
        elif isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router"):
            left.append(name)
    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's kin
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM",
        exclude_modules=left or None, fan_in_fan_out=transposed,
    )  # fmt: skip

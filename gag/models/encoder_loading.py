"""Load encoders, which often exist only as pytorch_model.bin, and say how much they take."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from gag.errors import SettingsError

T = TypeVar("T")
BROKEN = (SafetensorError, torch.serialization.pickle.UnpicklingError)  # what a cut or wrong file raises


def with_safetensors(load: Callable[[bool], T]) -> T:
    """Load an encoder's weights from safetensors, or where it has none through torch's weights-only loader.

    Args:
        load: takes transformers' `use_safetensors`. Without, transformers reads pytorch_model.bin with
            `weights_only=True`: tensors alone, and no code.
    """
    try:
        return load(True)
    except OSError as error:
        if "safetensors" not in str(error):
            raise
    try:
        return load(False)
    except torch.serialization.pickle.UnpicklingError as error:
        raise SettingsError(
            "pytorch_model.bin holds more than tensors, and is not loaded; save the model as safetensors"
        ) from error


def encoder_positions(config: Any, tokenizer: Any) -> int | None:
    """Return the most tokens that an encoder takes; None where it says nothing."""
    stated = getattr(config, "max_position_embeddings", None)
    if stated is not None and any(name in config.model_type for name in ("roberta", "camembert", "mpnet")):
        stated -= config.pad_token_id + 1  # their positions begin behind that of padding
    longest = min(stated or 10**9, getattr(tokenizer, "model_max_length", None) or 10**9)
    return longest if longest < 10**9 else None

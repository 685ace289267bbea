"""Models as their configs make them: how large they are, and shells of them without storage."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gag.errors import SettingsError
from gag.models.backbone import Backbone
from gag.models.loading import locate_model, one_line
from gag.models.prompts import Prompts
from gag.project.settings import ModelSettings


@dataclass(frozen=True)
class ModelSize:
    """A model's size as it is loaded."""

    model: str
    parameters: int
    tied: bool  # one matrix embeds tokens and makes logits
    dtype: str
    bytes: int


class Blueprint:
    """A model's config and tokenizer, and the data type in which a device (cuda or cpu) loads it.

    Raises SettingsError where config or tokenizer cannot be read.
    """

    def __init__(self, settings: ModelSettings, root: Path, device: str):
        self._settings = settings
        source = locate_model(settings.model, root)
        known: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": False}
        try:
            self._config: Any = AutoConfig.from_pretrained(source, **known)
            self._tokenizer = AutoTokenizer.from_pretrained(source, **known)
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise SettingsError(
                f"{settings.model} cannot be planned: {reason}; name a model's folder or id"
            ) from error
        self.prompts = Prompts(self._tokenizer)
        self.dtype = self._choose_dtype(device)

    @property
    def width(self) -> int:
        """Width of the states."""
        return self._config.get_text_config().hidden_size

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self._config.get_text_config().num_hidden_layers

    @property
    def vocabulary(self) -> int:
        """Number of tokens V that have an embedding."""
        return self._config.get_text_config().vocab_size

    @cached_property
    def size(self) -> ModelSize:
        """The model's size, counted on a shell of it."""
        model: Any = self.shell().model
        count = sum(parameter.numel() for parameter in model.parameters())
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        dtype = str(self.dtype).removeprefix("torch.")
        return ModelSize(self._settings.model, count, tied, dtype, count * self.dtype.itemsize)

    def shell(self, dtype: torch.dtype | None = None, rank: int | None = None) -> Backbone:
        """Build the model without storage, frozen, on PyTorch's meta device.

        `dtype` takes the place of the type in which it is loaded; a `rank` adds trainable LoRA layers.
        """
        attention = "eager" if self._settings.attention == "eager" else "sdpa"
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(self._config), dtype=dtype or self.dtype, attn_implementation=attention
            )
            model.eval().requires_grad_(False)
            if rank:
                _add_lora(model, rank)
        return Backbone(model, self._tokenizer, self._settings.model, self._settings.revision)

    def _choose_dtype(self, device: str) -> torch.dtype:
        """Return the type of the settings; `auto` is the config's own on a GPU, and float32 on a CPU."""
        if self._settings.dtype != "auto":
            return getattr(torch, self._settings.dtype)
        return (self._config.dtype or torch.float32) if device == "cuda" else torch.float32


def trained_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of the parameters that are trained."""
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)


def _add_lora(model: torch.nn.Module, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    inject_adapter_in_model(config, model)

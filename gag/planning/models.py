"""Models as their configs make them: how large they are, and shells of them without storage."""

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from gag.models.backbone import Backbone, token_limit
from gag.models.loading import load_config, load_tokenizer, shell
from gag.models.prompts import Prompts
from gag.project.settings import ModelSettings
from gag.training.lora import THIRD_PARTY, lora_config

_EXPERTS = "planned"  # transformers' name for our way to run experts


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

    Raises SettingsError where config or tokenizer cannot be read, and MissingExtraError where a package for
    it is missing.
    """

    def __init__(self, settings: ModelSettings, root: Path, device: str):
        self._settings = settings
        self._config: Any = load_config(settings, root)
        self._tokenizer = load_tokenizer(settings, root)
        self.prompts = Prompts(self._tokenizer)
        self.dtype = self._choose_dtype(device)

    @property
    def name(self) -> str:
        """The model's name in the settings."""
        return self._settings.model

    @cached_property
    def width(self) -> int:
        """Width of the token embeddings."""
        return self.shell().width

    @property
    def state_width(self) -> int:
        """Width of the inner layers' states; of nearly all models that of the embeddings."""
        return self._config.get_text_config().hidden_size

    @property
    def tokens(self) -> dict[str, int]:
        """The tokenizer's tokens and their numbers."""
        return self._tokenizer.get_vocab()

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self._config.get_text_config().num_hidden_layers

    @property
    def positions(self) -> int | None:
        """The most tokens that the model has positions for; None where it has no limit."""
        return token_limit(self._config)

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
        model = shell(copy.deepcopy(self._config), attention, dtype or self.dtype)
        model.eval().requires_grad_(False)
        if getattr(model.config, "_experts_implementation", None):
            model.config._experts_implementation = _EXPERTS
        if rank:
            with torch.device("meta"):
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
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        for message in THIRD_PARTY:
            warnings.filterwarnings("ignore", message)
        inject_adapter_in_model(lora_config(model, rank), model)


def _run_experts(
    module: Any, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Do the chosen experts' work [T, D] on tensors without values: all rows through one expert's weights."""

    def linear(rows: torch.Tensor, name: str) -> torch.Tensor:
        matrix = getattr(module, name)[0]
        return rows @ (matrix if module.is_transposed else matrix.T)

    rows = states.repeat_interleave(chosen.shape[-1], 0)  # [T * k, D]
    if module.has_gate:
        inner = module._apply_gate(linear(rows, "gate_up_proj"))
    else:
        inner = module.act_fn(linear(rows, "up_proj"))
    out = linear(inner, "down_proj") * weights.reshape(-1, 1)
    return out.view(len(states), -1, out.shape[-1]).sum(1).to(states.dtype)


ALL_EXPERTS_FUNCTIONS.register(_EXPERTS, _run_experts)

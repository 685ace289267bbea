"""Load a model from a folder of the project or from the hub, frozen; no remote code, no pickle."""

import os
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from gag.errors import MissingExtraError, SettingsError
from gag.models.backbone import Backbone
from gag.project.settings import ModelSettings


def locate_model(name: str, root: Path) -> str:
    """Return where transformers finds a model.

    A folder under the project's root (or an absolute one), else its id.
    """
    folder = root / name
    return str(folder) if folder.is_dir() else name


def portable_name(model: str) -> str:
    """Return the name by which a model is recorded: of an absolute path, its last part alone."""
    return Path(model).name if Path(model).is_absolute() else model


def load_tokenizer(settings: ModelSettings, root: Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone."""
    try:
        return AutoTokenizer.from_pretrained(
            locate_model(settings.model, root), revision=settings.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"the tokenizer of {settings.model} cannot be loaded: {one_line(error)}; name a whole model"
        ) from error


def load_backbone(settings: ModelSettings, root: Path) -> Backbone:
    """Load a model and its tokenizer, frozen.

    Args:
        settings: which model, and its dtype, device and attention.
        root: the project's folder; a model's folder lies under it.

    Raises:
        SettingsError: it is not there, not whole, or does not fit the device.
        MissingExtraError: `attention: flash_attention_2` without its package.
    """
    source, device = locate_model(settings.model, root), choose_device(settings.device)
    dtype = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
    known: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **known)
        # on an accelerator the weights go there file by file, not through a whole copy in the host's memory
        placed = known | ({} if device.type == "cpu" else {"device_map": {"": device}})
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=settings.attention, use_safetensors=True, **placed
        )
    except ImportError as error:
        if settings.attention != "flash_attention_2":
            raise
        raise MissingExtraError(
            "attention: flash_attention_2 needs the package flash-attn; run "
            "`pip install flash-attn --no-build-isolation`, or set attention: sdpa"
        ) from error
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        raise SettingsError(
            f"the model {settings.model} cannot be loaded: {one_line(error, 300)}; name a whole model "
            "folder or "
            "id, and a device that is here"
        ) from error
    model.eval().requires_grad_(False)
    stops = model.generation_config.eos_token_id if model.generation_config else None
    model.generation_config = GenerationConfig(eos_token_id=stops)  # no penalty or sampling rule of its own
    return Backbone(model, tokenizer, portable_name(settings.model), settings.revision)


def choose_device(name: str) -> torch.device:
    """Return a device by name; of several processes on one machine, each takes its own accelerator."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(
            f"setting device: {name!r} is no device; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    own = device.type != "cpu" and device.index is None and "LOCAL_RANK" in os.environ
    return torch.device(device.type, int(os.environ["LOCAL_RANK"])) if own else device


def one_line(error: BaseException, length: int = 200) -> str:
    """Squeeze an error's message to one line; a long one ends behind a whole word."""
    return shorten(str(error), length, placeholder=" ...")

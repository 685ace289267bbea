"""Load a model from a folder of the project or from the hub, frozen; no remote code, no pickle.

What is loaded is a language model of text alone: of a wrapper with a vision tower its text model is taken. It
is whole, its weights are numbers, and `check_serves` has tried on it all that the method asks.
"""

import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from gag.errors import MismatchError, MissingExtraError, SettingsError
from gag.models.backbone import Backbone
from gag.models.dry_run import check_serves
from gag.models.source import forget_gguf, is_gguf, model_source, portable_name
from gag.project.settings import ModelSettings
from gag.project.tensors import all_finite

T = TypeVar("T")
_PACKAGES = {  # that transformers needs for a quantised model: (module, what to install)
    "aqlm": ("aqlm", "aqlm"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "eetq": ("eetq", "eetq"),
    "gguf": ("gguf", "gguf"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "quark": ("quark", "amd-quark"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}


def load_tokenizer(settings: ModelSettings, root: Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone."""
    with _explained(settings, "the tokenizer of "):
        return model_source(settings, root).load(AutoTokenizer.from_pretrained)


def tokenizer_json(settings: ModelSettings, root: Path) -> str:
    """Load a model's tokenizer in its own JSON, for processes that only count tokens."""
    tokenizer: Any = load_tokenizer(settings, root)
    return tokenizer.backend_tokenizer.to_str()


def load_config(settings: ModelSettings, root: Path) -> PretrainedConfig:
    """Load a model's config alone.

    Raises:
        SettingsError: it is not there, or is none that transformers knows.
        MismatchError: no vector can be injected into it.
        MissingExtraError: the model is quantised, and the package for that is missing.
    """
    with _explained(settings):
        config = model_source(settings, root).load(AutoConfig.from_pretrained)
    stated = getattr(config, "quantization_config", None) or {}
    method = stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method
    module, package = _PACKAGES.get(str(method), ("transformers", ""))
    if not _is_installed(module):
        raise MissingExtraError(
            f"{settings.model} is quantised with {method}, which needs the package {package}; run "
            f"`pip install {package}`, or name the model that it was made from"
        )
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise MismatchError(
            f"{settings.model} looks its tokens' ids up in every layer (per-layer inputs), and an injected "
            "vector has no id; name a model of the family without them (of Gemma 4: 12B and larger)"
        )
    return config


def load_backbone(settings: ModelSettings, root: Path) -> Backbone:
    """Load a model and its tokenizer, frozen.

    Args:
        settings: which model, and its dtype, device and attention.
        root: the project's folder; a model's folder lies under it.

    Raises:
        SettingsError: it is not there, not whole, holds weights that are no numbers, or does not fit the
            device.
        MismatchError: it is whole, and the method cannot work with it; the message says why.
        MissingExtraError: a package is missing, for a quantised model or `attention: flash_attention_2`.
    """
    config, tokenizer = load_config(settings, root), load_tokenizer(settings, root)
    device = choose_device(settings.device)
    dtype = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
    # on an accelerator the weights go there file by file, not through a whole copy in the host's memory
    placed: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
    if settings.quantization != "none":
        placed = {"device_map": {"": device}, "quantization_config": _quantised(settings, dtype, device)}
    loader: Any = AutoModelForCausalLM
    if (
        type(config) not in loader._model_mapping
        and type(config) in AutoModelForImageTextToText._model_mapping
    ):
        loader = AutoModelForImageTextToText
    source = model_source(settings, root)
    with _explained(settings):
        model, report = with_attention(
            settings.attention,
            lambda attention: source.load_weights(
                loader.from_pretrained, config=config, dtype=dtype, attn_implementation=attention,
                use_safetensors=True, output_loading_info=True, **placed,
            ),
        )  # fmt: skip
    _check_whole(settings.model, report)
    if is_gguf(settings.model):
        forget_gguf(model)
    model = _text_model(settings.model, model).eval().requires_grad_(False)
    _check_finite(settings.model, model)
    model.base_model_prefix = _body(model)
    stops = model.generation_config.eos_token_id if model.generation_config else None
    model.generation_config = GenerationConfig(eos_token_id=stops)  # no penalty or sampling rule of its own
    # the header of a GGUF file takes seconds to read: of such a model the config itself says what it states
    stated = config.to_diff_dict() if source.gguf else source.load(PretrainedConfig.get_config_dict)[0]
    backbone = Backbone(model, tokenizer, portable_name(settings.model), settings.revision, stated)
    check_serves(backbone)
    return backbone


def _quantised(settings: ModelSettings, dtype: str | torch.dtype, device: torch.device) -> BitsAndBytesConfig:
    """Say how weights are quantised while they are loaded; no row is computed by what stands beside it."""
    if not _is_installed("bitsandbytes"):
        raise MissingExtraError(
            f"quantization: {settings.quantization} needs bitsandbytes; run `pip install bitsandbytes`, or "
            "set quantization: none"
        )
    if settings.quantization == "nf4" and device.type == "cpu":
        raise SettingsError(
            "quantization: nf4 has no gradients on a CPU, so nothing could be aligned; set int8, or a GPU"
        )
    log = logging.getLogger("bitsandbytes.autograd._functions")
    log.setLevel(logging.ERROR)  # it tells of each layer that numbers are rounded
    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    compute = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, torch.bfloat16)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def shell(config: PretrainedConfig, attention: str, dtype: torch.dtype) -> Any:
    """Build the text model of a config without storage, on PyTorch's meta device."""
    text: Any = config.get_text_config()
    if type(text) not in AutoModelForCausalLM._model_mapping:
        raise _without_class(config)
    with torch.device("meta"):
        model: Any = with_attention(
            attention,
            lambda chosen: AutoModelForCausalLM.from_config(text, dtype=dtype, attn_implementation=chosen),
        )
    model.base_model_prefix = _body(model)
    return model


def with_attention(wanted: str, make: Callable[[str], T]) -> T:
    """Make a model with an implementation of attention; where it has no sdpa, with eager attention."""
    try:
        return make(wanted)
    except ValueError as error:
        if wanted != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
    return make("eager")


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


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a module in a package that is missing
        return False


@contextmanager
def _explained(settings: ModelSettings, what: str = "") -> Iterator[None]:
    """Say in one line why a model cannot be loaded, and what to do."""
    try:
        yield
    except ImportError as error:
        if settings.attention == "flash_attention_2" and "flash" in str(error).lower():
            raise MissingExtraError(
                "attention: flash_attention_2 needs the package flash-attn; run "
                "`pip install flash-attn --no-build-isolation`, or set attention: sdpa"
            ) from error
        raise MissingExtraError(
            f"{what}{settings.model} needs a package that is not here: {one_line(error)}; install it, or "
            "name another model"
        ) from error
    except (OSError, ValueError, RuntimeError, AssertionError, LookupError, TypeError, AttributeError,
            ArithmeticError, SafetensorError, StrictDataclassError, struct.error) as error:  # fmt: skip
        raise _not_loaded(settings, what, error) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise _not_loaded(settings, what, error) from error  # tokenizers raises the bare class


def _not_loaded(settings: ModelSettings, what: str, error: Exception) -> SettingsError:
    cure = "name a whole model folder or id, and a device that is here"
    if "attention" in str(error) and settings.attention != "eager":
        cure = "set attention: eager"
    elif "trust_remote_code" in str(error):
        cure = "its own code is never run: name a model that transformers knows"
    reason = one_line(error, 300)
    return SettingsError(f"{what or 'the model '}{settings.model} cannot be loaded: {reason}; {cure}")


def _check_whole(name: str, report: dict[str, Any]) -> None:
    """Refuse a model some of whose tensors are missing, or of another shape: transformers makes those up."""
    odd = sorted(report.get("missing_keys") or []) + sorted(
        key[0] if isinstance(key, tuple) else key for key in report.get("mismatched_keys") or []
    )
    if odd:
        raise SettingsError(
            f"the model {name} lacks {len(odd)} of its tensors (first: {odd[0]}), or they have another "
            "shape than its config says; copy or download the whole model again"
        )


def _check_finite(name: str, model: torch.nn.Module) -> None:
    """Refuse weights that are no numbers."""
    for parameter, weights in model.state_dict().items():
        if not all_finite(weights):
            raise SettingsError(
                f"the model {name} holds weights that are no numbers (in {parameter}); copy or "
                "download it again, or name an earlier checkpoint"
            )


def _body(model: Any) -> str:
    """Return the attribute of a causal language model that holds all but its output layer."""
    return model.base_model_prefix if hasattr(model, model.base_model_prefix) else "model"


def _without_class(config: PretrainedConfig) -> MismatchError:
    return MismatchError(
        f"transformers has no text model of its own for {config.model_type} (its text is a "
        f"{config.get_text_config().model_type}); name a model of text alone"
    )


def _text_model(name: str, model: Any) -> Any:
    """Return a model, or of a wrapper with other towers its text model."""
    config = model.config.get_text_config()
    if config is model.config:
        return model
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _without_class(model.config)
    with torch.device("meta"):
        text: Any = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)
    setattr(text, _body(text), model.get_decoder())
    text.set_output_embeddings(model.get_output_embeddings())
    text.config, text.generation_config = config, model.generation_config
    config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if any(tensor.is_meta for tensor in [*text.parameters(), *text.buffers()]):
        raise MismatchError(f"the text model in {name} cannot be taken by itself; name a model of text alone")
    return text

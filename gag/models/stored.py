"""Single tensors of a model's files, where the whole model is not wanted: its embeddings, its last norm."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from gag.errors import SettingsError
from gag.models.backbone import embedding_scale
from gag.models.loading import load_config, one_line, shell
from gag.models.source import is_gguf, locate_model, model_source
from gag.project.settings import ModelSettings

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LAST_NORM = ("norm", "final_layernorm", "ln_f", "final_norm", "norm_f")  # a decoder's, as models call it


def load_table(base: ModelSettings, root: Path) -> torch.Tensor:
    """Load a model's token embeddings alone, at the scale that its embedding layer gives them [V, Db]."""
    model: Any = shell(load_config(base, root), base.attention, torch.float32)
    scale = embedding_scale(model)
    table = model.get_input_embeddings().weight
    stored = _gguf_table(base, root) if is_gguf(base.model) else _stored(base, root, model, table)
    return stored if scale == 1.0 else stored * scale


def load_last_norm(settings: ModelSettings, root: Path) -> torch.nn.Module:
    """Load the norm behind a model's last layer alone."""
    model: Any = shell(load_config(settings, root), settings.attention, torch.float32)
    norm = next((one for name in _LAST_NORM if (one := getattr(model.base_model, name, None))), None)
    if norm is None or is_gguf(settings.model):
        raise SettingsError(
            f"the last norm of {settings.model} cannot be read by itself; leave the last layer out of "
            "readout.layers"
        )
    tensors = {name: _stored(settings, root, model, one) for name, one in norm.named_parameters()}
    norm.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return norm.eval().requires_grad_(False)


def _stored(base: ModelSettings, root: Path, model: Any, wanted: torch.Tensor) -> torch.Tensor:
    """Take a parameter of a model, given without storage, out of its weight files."""
    source, known = locate_model(base.model, root), {"revision": base.revision}
    name = next(name for name, parameter in model.named_parameters() if parameter is wanted)
    with _explained(base):
        index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False, **known)
        parts = json.loads(Path(index).read_bytes())["weight_map"] if index else {}
        found: dict[str, Path] = {}
        for part in sorted(set(parts.values())) or [_WHOLE]:
            path = Path(str(cached_file(source, part, **known)))
            with safe_open(path, "pt") as weights:
                names = list(weights.keys())
                alike = [n for n in names if list(weights.get_slice(n).get_shape()) == list(wanted.shape)]
            found |= dict.fromkeys(alike, path)
        chosen = _called(name, list(found))
        with safe_open(found[chosen], "pt") as weights:
            return weights.get_tensor(chosen)


def _gguf_table(base: ModelSettings, root: Path) -> torch.Tensor:
    """Take the embeddings alone out of a GGUF file."""
    source = model_source(base, root)
    with _explained(base):
        from gguf import GGUFReader, dequantize

        path = cached_file(source.where, str(source.gguf), revision=base.revision)
        found = {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}["token_embd.weight"]
        return torch.from_numpy(dequantize(found.data, found.tensor_type).copy()).float()


def _called(name: str, found: list[str]) -> str:
    """Return which of some tensors has a name, under any prefix; of tied ones the output layer's serves."""
    ends = [".".join(name.split(".")[-count:]) for count in range(name.count(".") + 1, 1, -1)]
    alike = [each for end in ends for each in found if each == end or each.endswith(f".{end}")]
    outputs = [each for each in found if each.endswith(("lm_head.weight", "embed_out.weight"))]
    return [*alike, *outputs][0]


@contextmanager
def _explained(base: ModelSettings) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise SettingsError(
            f"the tokens of {base.model} or their embeddings cannot be read: {one_line(error, 300)}; "
            "name a whole model"
        ) from error

"""Take a checkpoint that was tuned elsewhere as an expert, once it is known to fit.

A checkpoint is an adapter (adapter_config.json, adapter_model.safetensors) or full weights (config.json and
model.safetensors, or its shards). Weights in torch's own format are read as tensors alone and written anew as
safetensors. Only what an expert needs is copied: no optimiser state, no path of the machine that made it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from gag.errors import ArtifactError, MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.models.experts import ADAPTER, Experts
from gag.models.loading import one_line
from gag.project.artifacts import write_json
from gag.project.keys import stage_key
from gag.project.rows import digest
from gag.project.tensors import load_weights

ADAPTER_CONFIG, CONFIG, GENERATION = "adapter_config.json", "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAME = "adopted"  # while it is checked
_PICKLED = {  # by what they become: whole, or its shards
    ADAPTER: ("adapter_model.bin",),
    WEIGHTS: ("pytorch_model.bin", "pytorch_model-*-of-*.bin"),
}


def check_source(source: Path, tuning: str | None, folds: int) -> bool:
    """Check what can be checked without a model; say whether the checkpoint is an adapter.

    Args:
        source: the checkpoint's folder.
        tuning: the kind that it must be of; None: either.
        folds: of cross-fitting, for which one expert is not enough.
    """
    if folds > 1:
        raise SettingsError(
            f"readout.folds is {folds}: cross-fitting needs an expert of each fold, and a checkpoint is one; "
            "set readout.folds: 1, or let `gag adapt` tune them"
        )
    if not source.is_dir():
        raise SettingsError(f"{source} is not a folder; point at the folder that the training wrote")
    adapter = (source / ADAPTER_CONFIG).is_file()
    if not adapter and not (source / CONFIG).is_file():
        raise ArtifactError(
            f"{source.name} holds neither {ADAPTER_CONFIG} nor {CONFIG}; point at a training's output_dir or "
            "checkpoint folder"
        )
    found = "lora" if adapter else "full"
    if found != (tuning or found):
        raise MismatchError(
            f"{source.name} is of {found} tuning, adapt.tuning is {tuning}; set it to {found}"
        )
    return adapter


def weights_name(source: Path) -> str:
    """Name a checkpoint by its weights."""
    kinds = ("*.safetensors", *_PICKLED[ADAPTER], *_PICKLED[WEIGHTS])
    return stage_key(**{path.name: digest(path) for kind in kinds for path in sorted(source.glob(kind))})


def take_adapter(source: Path, expert: Path, backbone: Backbone) -> None:
    """Copy an adapter, and check that the backbone takes each of its tensors."""
    from peft import get_peft_model_state_dict

    config = _read(source / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA" or config.get("modules_to_save"):
        raise ArtifactError(
            f"{source.name} is no plain LoRA adapter; tune with LoRA alone (no additional_target)"
        )
    _copy(source, [ADAPTER], expert)
    write_json(
        expert / ADAPTER_CONFIG,
        config | {"base_model_name_or_path": backbone.name, "revision": backbone.revision},
    )
    stored = {name.removeprefix("base_model.model.") for name in _tensors(expert / ADAPTER)}
    experts = Experts(backbone)
    experts.load(_NAME, expert)
    with experts.using(_NAME) as tuned:
        active = tuned.model.active_adapters()[0]
        taken = get_peft_model_state_dict(
            tuned.model, adapter_name=active, save_embedding_layers=False
        ).keys()
    odd = sorted(stored ^ {name.removeprefix("base_model.model.") for name in taken})
    if odd:
        raise MismatchError(
            f"the adapter in {source.name} and the expert {backbone.name} differ in {len(odd)} "
            f"tensors (first: {odd[0]}); "
            "name the model that it was tuned on as expert in gag.yaml"
        )


def take_weights(source: Path, expert: Path, backbone: Backbone) -> None:
    """Copy full weights beside the backbone's tokenizer, and check that they are that model, whole."""
    config = _read(source / CONFIG)
    sharded = (source / INDEX).is_file()
    names = sorted(set(_read(source / INDEX).get("weight_map", {}).values())) if sharded else [WEIGHTS]
    _check_words(source, backbone)
    extra = [name for name in (INDEX, GENERATION) if (source / name).is_file()]
    _copy(source, [*names, *extra], expert)
    write_json(expert / CONFIG, {name: value for name, value in config.items() if name != "_name_or_path"})
    backbone.tokenizer.save_pretrained(expert)
    _check_weights(source, expert, backbone)


def _check_weights(source: Path, expert: Path, backbone: Backbone) -> None:
    """Refuse weights of other shapes, or not all there."""
    tuned, shapes = _load(source, expert, backbone), _shapes(backbone)
    if _shapes(tuned) != shapes:
        raise MismatchError(
            f"the weights in {source.name} ({tuned.layers} layers, {tuned.width} wide) are not of the "
            f"expert {backbone.name} "
            f"({backbone.layers} layers, {backbone.width} wide); name the model that they were tuned "
            "from as expert in gag.yaml"
        )


def _check_words(source: Path, backbone: Backbone) -> None:
    """Refuse a checkpoint that was tuned with another vocabulary."""
    if not (source / "tokenizer.json").is_file():
        return
    try:
        words = AutoTokenizer.from_pretrained(source, trust_remote_code=False).get_vocab()
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"the tokenizer in {source.name} cannot be read; copy the folder again"
        ) from error
    if words != backbone.tokenizer.get_vocab():
        raise MismatchError(
            f"{source.name} was tuned with another vocabulary than the expert {backbone.name} has; "
            "tune without added tokens"
        )


def _load(source: Path, expert: Path, backbone: Backbone) -> Backbone:
    experts = Experts(backbone)
    try:
        experts.load(_NAME, expert)
    except SettingsError as error:
        raise ArtifactError(
            f"the weights in {source.name} cannot be loaded: {one_line(error.__cause__ or error)}; "
            "copy the whole folder again"
        ) from error
    with experts.using(_NAME) as tuned:
        return tuned


def _shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in backbone.model.named_parameters()}


def _tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ArtifactError(
            f"{path.name} is not a whole safetensors file ({error}); copy the folder again"
        ) from error


def _copy(source: Path, names: list[str], expert: Path) -> None:
    """Copy files of a checkpoint; weights of torch's own format are written as safetensors."""
    for name in names:
        if Path(name).name == name and (source / name).is_file():
            shutil.copyfile(source / name, expert / name)
        elif pickled := _pickled(source, name):
            parts = [load_weights(path) for path in pickled]
            tensors = {key: value.contiguous().clone() for part in parts for key, value in part.items()}
            save_file(tensors, expert / name, metadata={"format": "pt"})
        else:
            raise ArtifactError(
                f"{source.name} holds no {name}; save the model as safetensors, then run this again"
            )


def _pickled(source: Path, name: str) -> list[Path]:
    """Find a checkpoint's files in torch's own format: those of the first form that is there."""
    found = (sorted(source.glob(form)) for form in _PICKLED.get(name, ()))
    return next((paths for paths in found if paths), [])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(
            f"{path.parent.name}/{path.name} is not JSON ({error}); copy the folder again"
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path.parent.name}/{path.name} is no JSON object; copy the folder again")
    return content

"""Take an expert that was tuned elsewhere as a domain's stage-I result, once it is known to fit.

A checkpoint is an adapter (adapter_config.json, adapter_model.safetensors) or full weights (config.json and
model.safetensors, or its shards). Only safetensors are read, and only what an expert needs is copied: no optimiser state,
no pickle, no path of the machine that it was made on.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from gag.errors import ArtifactError, MismatchError, SettingsError
from gag.models.backbone import Backbone, load_backbone
from gag.models.experts import ADAPTER, Experts
from gag.project import distributed
from gag.project.artifacts import is_current, read_manifest, write_json, writing
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import digest
from gag.stages.adapt import check_readable, key

ADAPTER_CONFIG, CONFIG, GENERATION = "adapter_config.json", "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAME = "adopted"  # while it is checked
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def adopt(project: Project, domain: str, source: Path) -> Path:
    """Write a checkpoint as the domain's expert, as if `adapt` had tuned it; return the stage's folder."""
    folder, wanted = project.run(domain, "adapt"), key(project, domain)
    adapter = _check_asked(project, source)
    if distributed.broadcast(lambda: _is_taken(folder, wanted, source)):
        say(f"adapt {domain}: already there")
        return folder
    _check_unread(project, domain)
    if distributed.rank() == 0:
        facts = {"key": wanted, "from": source.resolve().name, "rows": 0, "seconds": 0}
        with writing(folder, facts) as temporary:
            backbone, expert = load_backbone(project.settings.expert, project.root), temporary / "expert"
            check_readable(project, backbone)
            expert.mkdir()
            (_take_adapter if adapter else _take_weights)(source, expert, backbone)
    distributed.barrier()
    say(f"adapt {domain}: took {'the adapter' if adapter else 'the weights'} of {source.resolve().name}")
    return folder


def _check_asked(project: Project, source: Path) -> bool:
    """Check what can be checked without a model; say whether the checkpoint is an adapter."""
    settings = project.settings
    if settings.readout.folds > 1:
        raise SettingsError(
            f"readout.folds is {settings.readout.folds}: cross-fitting needs an expert of each fold, and a checkpoint is one; "
            "set readout.folds: 1, or let `gag adapt` tune them"
        )
    if not source.is_dir():
        raise SettingsError(f"{source} is not a folder; point at the folder that the training wrote")
    adapter = (source / ADAPTER_CONFIG).is_file()
    if not adapter and not (source / CONFIG).is_file():
        raise ArtifactError(
            f"{source.name} holds neither {ADAPTER_CONFIG} nor {CONFIG}; point at a training's output_dir or checkpoint folder"
        )
    tuning = "lora" if adapter else "full"
    if settings.adapt.tuning != tuning:
        raise MismatchError(
            f"{source.name} is of {tuning} tuning, adapt.tuning is {settings.adapt.tuning}; set it to {tuning}"
        )
    return adapter


def _is_taken(folder: Path, wanted: str, source: Path) -> bool:
    """Say whether the domain's expert already has the weights of a checkpoint."""
    weights = sorted(source.glob("*.safetensors"))
    if not weights or not is_current(folder, wanted):
        return False
    files = read_manifest(folder)["files"]
    return all(files.get(f"expert/{path.name}") == digest(path) for path in weights)


def _check_unread(project: Project, domain: str) -> None:
    """Refuse while later results stand: they were made from the expert of before, and nothing would make them again."""
    later = [project.run(domain, "readouts"), project.run(domain, "align"), project.domain(domain)]
    standing = [str(folder.relative_to(project.root)) for folder in later if folder.exists()]
    if standing:
        raise ArtifactError(
            f"{', '.join(standing)}: made from another expert of {domain}; remove them, then run this again"
        )


def _take_adapter(source: Path, expert: Path, backbone: Backbone) -> None:
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
            f"the adapter in {source.name} and the expert {backbone.name} differ in {len(odd)} tensors (first: {odd[0]}); "
            "name the model that it was tuned on as expert in gag.yaml"
        )


def _take_weights(source: Path, expert: Path, backbone: Backbone) -> None:
    """Copy full weights beside the backbone's own tokenizer, and check that they are the same model, whole."""
    config = _read(source / CONFIG)
    sharded = (source / INDEX).is_file()
    names = sorted(set(_read(source / INDEX).get("weight_map", {}).values())) if sharded else [WEIGHTS]
    _check_words(source, backbone)
    extra = [name for name in (INDEX, GENERATION) if (source / name).is_file()]
    _copy(source, [*names, *extra], expert)
    write_json(expert / CONFIG, {name: value for name, value in config.items() if name != "_name_or_path"})
    backbone.tokenizer.save_pretrained(expert)
    _check_weights(source, names, expert, backbone)


def _check_weights(source: Path, names: list[str], expert: Path, backbone: Backbone) -> None:
    """Refuse weights that are not of the backbone's shapes, or not all there (transformers would make the rest up)."""
    tuned, shapes = _load(source, expert, backbone), _shapes(backbone)
    if _shapes(tuned) != shapes:
        raise MismatchError(
            f"the weights in {source.name} ({tuned.layers} layers, {tuned.width} wide) are not of the expert {backbone.name} "
            f"({backbone.layers} layers, {backbone.width} wide); name the model that they were tuned from as expert in gag.yaml"
        )
    stored = sum(math.prod(shape) for name in names for shape in _tensors(expert / name).values())
    if stored < sum(map(math.prod, shapes.values())):
        raise ArtifactError(f"{source.name} lacks some of its weights; copy the whole folder again")


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
            f"{source.name} was tuned with another vocabulary than the expert {backbone.name} has; tune without added tokens"
        )


def _load(source: Path, expert: Path, backbone: Backbone) -> Backbone:
    experts = Experts(backbone)
    try:
        experts.load(_NAME, expert)
    except SettingsError as error:
        reason = " ".join(str(error.__cause__).split())[:200]
        raise ArtifactError(
            f"the weights in {source.name} cannot be loaded: {reason}; copy the whole folder again"
        ) from error
    with experts.using(_NAME) as tuned:
        return tuned


def _shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in backbone.model.named_parameters()}


def _tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ArtifactError(
            f"{path.name} is not a whole safetensors file ({error}); copy the folder again"
        ) from error


def _copy(source: Path, names: list[str], expert: Path) -> None:
    """Copy files of a checkpoint; weights that are missing or pickled are refused."""
    for name in names:
        if Path(name).name != name or not (source / name).is_file():
            pickled = sorted(path.name for path in source.iterdir() if path.suffix in _PICKLES)
            others = f" (pickles are never loaded: {', '.join(pickled)})" if pickled else ""
            raise ArtifactError(
                f"{source.name} holds no {name}{others}; save the model as safetensors, then run this again"
            )
        shutil.copyfile(source / name, expert / name)


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

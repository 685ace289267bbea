"""Tune an expert with TRL: an adapter or all weights, on one process or many, going on after a kill.

The trainer's checkpoints count only once a manifest stands beside their files; the newest two complete ones
are kept.
"""

import copy
import hashlib
import json
import math
import os
import shutil
import warnings
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gag.errors import SettingsError
from gag.models.backbone import Backbone
from gag.models.experts import ADAPTER
from gag.models.loading import load_backbone
from gag.project import distributed
from gag.project.artifacts import MANIFEST, is_current, seal, write_json, writing
from gag.project.hyperparameters import AdaptSettings
from gag.project.keys import stage_key
from gag.project.progress import bar
from gag.project.run import Run, cut_log
from gag.project.settings import ModelSettings
from gag.training.lora import THIRD_PARTY, lora_config


@dataclass(frozen=True)
class Tuning:
    """One tuning of an expert: what it is called, its rows, and where it starts."""

    name: str
    label: str
    settings: AdaptSettings
    rows: list[dict[str, list[int]]]
    val: list[dict[str, list[int]]] | None = None  # held-out rows that choose the best checkpoint
    block: int | None = None  # pack rows to blocks of this many tokens, kept apart by their positions

    @property
    def key(self) -> str:
        """Name the tuning by what decides its result; where it starts is in the run's own inputs."""
        sha = hashlib.sha256()
        for row in self.rows + (self.val or []):
            for ids in row.values():
                sha.update(array("q", [*ids, -1]).tobytes())
        return stage_key(name=self.name, settings=self.settings.key(), block=self.block, rows=sha.hexdigest())

    @property
    def steps(self) -> int:
        """Optimiser steps, at most: packing needs fewer."""
        tokens = sum(len(row["input_ids"]) for row in self.rows)
        rows = len(self.rows) if self.block is None else math.ceil(tokens / self.block)
        return math.ceil(self.settings.epochs * rows / self.settings.batch_size)


def tune(model: ModelSettings, root: Path, run: Run, tuning: Tuning, start: Path | None = None) -> Path:
    """Tune a model, unless it is done; return the folder with the adapter or the weights.

    Args:
        model: what is tuned; a folder of it lies under `root`.
        root: the project's folder.
        run: the run that it is a part of; its folder takes the checkpoints and the log.
        tuning: rows and settings.
        start: an adapter, or weights, of an earlier tuning to go on from.

    Raises:
        SettingsError: the batch does not divide among the processes, or one process sees several GPUs.
    """
    folder = run.folder / tuning.name
    key = tuning.key
    if distributed.broadcast(lambda: is_current(folder, key)):
        return folder
    _check_devices()
    adapter = start if start and (start / ADAPTER).is_file() else None
    source = model.changed(model=str(start), revision=None) if start and not adapter else model
    backbone = load_backbone(source, root)
    dtype = backbone.model.dtype
    scratch, log = run.folder / f"{tuning.name}-trainer", run.folder / f"{tuning.name}.log.jsonl"
    newest = _newest(scratch, key)
    cut_log(log, int(newest.name.split("-")[1]) if newest else -1)
    with bar(tuning.label, tuning.steps) as advance, warnings.catch_warnings():
        for message in THIRD_PARTY:
            warnings.filterwarnings("ignore", message)
        watch = _callback(run, log, key, tuning.settings.checkpoint_minutes, advance)
        lora = (
            None
            if adapter or tuning.settings.tuning == "full"
            else lora_config(backbone.model, tuning.settings.rank)
        )
        trainer = _trainer(_prepared(backbone, tuning, adapter), backbone, tuning, scratch, lora, watch)
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        _save(trainer, backbone, dtype, folder, key)
    if distributed.rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    distributed.barrier()
    return folder


def _check_devices() -> None:
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise SettingsError(
            f"{torch.cuda.device_count()} GPUs are visible to one process; use `torchrun --nproc-per-node "
            f"{torch.cuda.device_count()} -m gag ...` for all of them, or set CUDA_VISIBLE_DEVICES to one"
        )


def _prepared(backbone: Backbone, tuning: Tuning, adapter: Path | None) -> Any:
    """Return the model to train: the backbone, with the adapter of an earlier tuning if there is one."""
    full = tuning.settings.tuning == "full"
    if adapter:
        from peft import PeftModel

        name = backbone.model.name_or_path
        model = PeftModel.from_pretrained(backbone.model, str(adapter), is_trainable=True)
        model.peft_config["default"].base_model_name_or_path = name  # else PEFT looks it up on the hub
        return model
    model = backbone.model.train().requires_grad_(full)
    return model.float() if full else model  # small steps are lost in half precision


def _trainer(model: Any, backbone: Backbone, tuning: Tuning, scratch: Path, lora: Any, callback: Any) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig

    from gag.training.answer_loss import trainer_class

    settings, accelerated, half = tuning.settings, backbone.device.type != "cpu", _half(backbone.device)
    micro, accumulated = _micro_batches(settings)
    best: dict[str, Any] = {"save_strategy": "no"}  # the callback saves, by the clock
    if tuning.val:  # the best checkpoint is chosen among those that are evaluated
        every = max(1, tuning.steps // 4)
        best = {"save_strategy": "steps", "save_steps": every, "eval_strategy": "steps", "eval_steps": every}
        best |= {"load_best_model_at_end": True}
    packed: dict[str, Any] = (
        {"packing": True, "max_length": tuning.block} if tuning.block else {"max_length": None}
    )
    arguments = SFTConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bf16=half == torch.bfloat16,
        fp16=half == torch.float16,
        use_cpu=not accelerated,
        gradient_checkpointing=settings.gradient_checkpointing and model.supports_gradient_checkpointing,
        logging_steps=max(1, min(10, tuning.steps // 10)),
        save_total_limit=3,  # while the newest one is not complete yet, two others are
        router_aux_loss_coef=None if _balances_experts(backbone) else 0.0,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=accelerated,
        **packed,
        **best,
    )
    trainer = trainer_class(backbone.model, backbone.device, packed=bool(tuning.block))(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(tuning.rows),
        eval_dataset=Dataset.from_list(tuning.val) if tuning.val else None,
        processing_class=_padding(backbone),
        peft_config=lora,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@torch.no_grad()
def _balances_experts(backbone: Backbone) -> bool:
    """Say whether TRL can weigh how evenly a mixture's experts are used: the model tells its choices."""
    if not hasattr(backbone.model.config.get_text_config(), "num_experts"):
        return False
    ids = torch.tensor([backbone.prompts.text("What is it?")], device=backbone.device)
    try:
        found = getattr(backbone.model(ids, output_router_logits=True), "router_logits", None)
    except (TypeError, LookupError):
        return False
    return bool(found)


def _padding(backbone: Backbone) -> Any:
    """Return the tokenizer with a token to pad with that has an embedding; padding is always masked."""
    own = backbone.tokenizer.pad_token_id
    if isinstance(own, int) and own < len(backbone.table):
        return backbone.tokenizer
    padding = copy.deepcopy(backbone.tokenizer)
    padding.pad_token = padding.convert_ids_to_tokens(backbone.prompts.end)
    return padding


def _micro_batches(settings: AdaptSettings) -> tuple[int, int]:
    """Return the rows of a process's forward pass, and how many passes make a step."""
    world = distributed.world_size()
    micro = min(settings.micro_batch_size, max(1, settings.batch_size // world))
    if settings.batch_size % (micro * world) and settings.batch_size > micro:
        raise SettingsError(
            f"batch_size {settings.batch_size} is no multiple of {world} processes x micro_batch_size {micro}"
        )
    return micro, max(1, settings.batch_size // (micro * world))


def _half(device: torch.device) -> torch.dtype | None:
    """Return the half precision that an accelerator is made for; none on a CPU, or on Apple's."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _callback(run: Run, log: Path, key: str, minutes: float, advance: Any) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Log, advance the bar, and mark a checkpoint as complete once all its files stand."""

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
        ) -> None:
            run.report({"step": state.global_step, **(logs or {})}, log)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(1)
            if run.due(minutes):
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            distributed.barrier()
            if state.is_world_process_zero:
                run.saved()
                seal(
                    Path(args.output_dir) / f"checkpoint-{state.global_step}",
                    {"key": key, "step": state.global_step},
                )

    return Watch()


def _newest(scratch: Path, key: str) -> Path | None:
    """Return the newest complete checkpoint of these inputs; others are cleared."""
    found = None
    for folder in sorted(
        scratch.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True
    ):
        if distributed.broadcast(lambda f=folder: (f / MANIFEST).is_file() and is_current(f, key)):
            found = found or folder
        elif distributed.rank() == 0:
            shutil.rmtree(folder)
    distributed.barrier()
    return found


def _save(trainer: Any, backbone: Backbone, dtype: torch.dtype, folder: Path, key: str) -> None:
    """Save the weights that were trained, without a trace of where they were made."""
    weights = trainer.accelerator.get_state_dict(trainer.model)  # gathered, if they are sharded
    model = trainer.accelerator.unwrap_model(trainer.model)
    if distributed.rank() == 0:
        with writing(folder, {"key": key}) as expert:
            if hasattr(model, "peft_config"):
                weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
                model.save_pretrained(expert, state_dict=weights, save_embedding_layers=False)
                (expert / "README.md").unlink(missing_ok=True)
                config = expert / "adapter_config.json"
                content = json.loads(config.read_text(encoding="utf-8"))
                write_json(
                    config,
                    content | {"base_model_name_or_path": backbone.name, "revision": backbone.revision},
                )
            else:
                tied = model.all_tied_weights_keys  # of these one copy is enough
                half = {name: tensor.to(dtype) for name, tensor in weights.items() if name not in tied}
                model.config.dtype = dtype
                model.save_pretrained(expert, state_dict=half)
                backbone.tokenizer.save_pretrained(expert)
    distributed.barrier()

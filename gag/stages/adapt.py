"""Stage I: teach a domain's expert its knowledge, by supervised tuning with the loss on answers only."""

import json
import math
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from gag.artifacts import is_current, write_json, writing
from gag.backbone import Backbone, load_backbone
from gag.config import AdaptSettings, Project
from gag.data import adapt_file
from gag.errors import DataError, SettingsError
from gag.progress import bar, say
from gag.readout import check_layers
from gag.records import Example, digest, read_examples
from gag.training import append_log, model_key, stage_key

CUT_SHARE = 0.01
_THIRD_PARTY = (  # spoken by transformers 5.23 about names that TRL and PEFT still use
    "`gradient_checkpointing` is deprecated",
    "`is_gradient_checkpointing` is deprecated",
)


def key(project: Project, domain: str) -> str:
    """Name what the expert is made from."""
    described = project.described(domain)
    return stage_key(
        data=digest(adapt_file(project, domain)),
        settings=project.settings.adapt.model_dump(),
        expert=model_key(project.settings.expert, project.root),
        prompt=described.prompts.expert,
    )


def adapt(project: Project, domain: str) -> Path:
    """Tune the expert of a domain; return the folder with the adapter or the full weights."""
    folder = project.run(domain, "adapt")
    wanted = key(project, domain)
    if is_current(folder, wanted):
        say(f"adapt {domain}: already there")
        return folder
    started = time.monotonic()
    settings = project.settings.adapt
    examples = read_examples(adapt_file(project, domain))
    backbone = load_backbone(project.settings.expert, project.root)
    check_layers(backbone, project.settings.readout.layers)
    rows = tokenise(backbone, examples, project.described(domain).prompts.expert, settings.max_tokens)
    facts: dict[str, Any] = {"key": wanted, "rows": len(rows), "settings": settings.model_dump()}
    dtype = backbone.model.dtype
    with writing(folder, facts) as temporary:
        trained = _train(backbone, rows, settings, temporary / "log.jsonl", f"adapt {domain}")
        _save(trained, backbone, dtype, temporary)
        facts["seconds"] = round(time.monotonic() - started, 1)
    say(f"adapt {domain}: {len(rows)} rows, {facts['seconds']:.0f} s")
    return folder


def tokenise(backbone: Backbone, examples: list[Example], system: str, max_tokens: int) -> list[dict[str, list[int]]]:
    """Encode rows with labels on the answer only; an answer over the limit is cut, and too many cut answers refused."""
    rows, cut = [], []
    for example in examples:
        prompt = backbone.prompts.ask_expert(example.question, system)
        answer = backbone.prompts.answer(example.answers[0])
        if len(prompt) >= max_tokens:
            raise DataError(
                f"the question of row {example.id} fills adapt.max_tokens={max_tokens}; raise it or shorten the row"
            )
        if len(prompt) + len(answer) > max_tokens:
            cut.append(example.id)
            answer = answer[: max_tokens - len(prompt)]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    if len(cut) > CUT_SHARE * len(examples):
        raise DataError(
            f"adapt.max_tokens={max_tokens} cuts {len(cut)} of {len(examples)} answers (first: {', '.join(cut[:3])}); "
            "raise it, or shorten the rows"
        )
    if cut:
        say(f"  {len(cut)} answers are cut at adapt.max_tokens={max_tokens}: {', '.join(cut[:3])}")
    return rows


def _train(backbone: Backbone, rows: list[dict[str, list[int]]], settings: AdaptSettings, log: Path, label: str) -> Any:
    scratch = log.parent / "trainer"
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise SettingsError("adapt runs on one GPU, and several are visible; set CUDA_VISIBLE_DEVICES to one of them")
    backbone.model.train().requires_grad_(settings.tuning == "full")
    if settings.tuning == "full":
        backbone.model.float()  # small steps are lost in half precision
    steps = math.ceil(settings.epochs * len(rows) / settings.batch_size)
    with bar(label, steps) as advance, warnings.catch_warnings():
        for message in _THIRD_PARTY:
            warnings.filterwarnings("ignore", message, FutureWarning)
        trainer = _trainer(backbone, rows, settings, scratch, log, advance)
        trainer.train()
    shutil.rmtree(scratch, ignore_errors=True)
    return trainer.model


def _trainer(
    backbone: Backbone, rows: list[dict[str, list[int]]], settings: AdaptSettings, scratch: Path, log: Path, advance: Any
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
            append_log(log, {"step": state.global_step, **(logs or {})})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(1)

    accelerated = backbone.device.type != "cpu"
    micro = min(settings.micro_batch_size, settings.batch_size)
    arguments = SFTConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, settings.batch_size // micro),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_length=None,
        seed=settings.seed,
        bf16=accelerated,
        use_cpu=not accelerated,
        gradient_checkpointing=accelerated,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=accelerated,
    )
    trainer = SFTTrainer(
        model=backbone.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=backbone.tokenizer,
        peft_config=_lora(settings) if settings.tuning == "lora" else None,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _lora(settings: AdaptSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _save(trained: Any, backbone: Backbone, dtype: torch.dtype, folder: Path) -> None:
    """Save the weights that were trained, without a trace of where they were made."""
    expert = folder / "expert"
    if not hasattr(trained, "peft_config"):
        trained.to(dtype).save_pretrained(expert)
        backbone.tokenizer.save_pretrained(expert)
        return
    trained.save_pretrained(expert, save_embedding_layers=False)
    (expert / "README.md").unlink(missing_ok=True)
    config = expert / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    write_json(config, content | {"base_model_name_or_path": backbone.name, "revision": backbone.revision})

"""Write a domain's stage I for LLaMA-Factory: its rows as Alpaca data, and a training file for each step.

The expert's prompt travels with each row as its system turn, so the tuned model sees the turns that a readout
renders.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from gag.errors import SettingsError
from gag.project.artifacts import write_json
from gag.project.hyperparameters import AdaptSettings, PretrainSettings
from gag.project.project import Project
from gag.project.rows import Example, write_rows

INFO, SAVE_STEPS = "dataset_info.json", 100
DEEPSPEED = "deepspeed.json"
ZERO_3 = {  # weights, gradients and optimiser states parted over the GPUs, as published
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
_HEADER = """\
# Stage I of {domain}, step {step}. In this folder: llamafactory-cli train {step}.yaml
# The accumulation is for one process: divide it by the number of GPUs. `deepspeed`, where it stands, parts a
# model over several; leave it out on one, or where the package is not installed.
"""


def export_llamafactory(project: Project, domain: str, folder: Path) -> list[Path]:
    """Write data and training files of a domain's stage I into a new or empty folder.

    Return what was written.
    """
    inputs = project.inputs(domain)
    passages = [{"text": passage.text} for passage in inputs.passages or []]
    _claim(folder)
    system = inputs.prompts.expert
    data = [folder / f"{domain}.jsonl", folder / f"{domain}-val.jsonl"]
    write_rows(data[0], (_alpaca(example, system) for example in inputs.taught))
    write_rows(data[1], (_alpaca(example, system) for example in inputs.splits.val))
    if passages:
        data.append(folder / f"{domain}-corpus.jsonl")
        write_rows(data[2], passages)
    columns = (ALPACA, ALPACA, {"prompt": "text"})
    info = {
        path.stem: {"file_name": path.name, "columns": names}
        for path, names in zip(data, columns, strict=False)
    }
    write_json(folder / INFO, info)
    if project.settings.adapt.tuning == "full":
        data.append(folder / DEEPSPEED)
        write_json(data[-1], ZERO_3)
    steps = {"pt": _pretraining(project, domain, folder)} if passages else {}
    steps["sft"] = _tuning(project, domain, folder, after_corpus=bool(passages))
    return [folder / INFO, *data, *(_write(folder, domain, step, content) for step, content in steps.items())]


def _claim(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is already there and not an empty folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)


def _alpaca(example: Example, system: str) -> dict[str, str]:
    return {"system": system, "instruction": example.question, "input": "", "output": example.answers[0]}


def _tuning(project: Project, domain: str, folder: Path, after_corpus: bool) -> dict[str, Any]:
    """Describe the tuning on question-answer rows; it goes on from what read the corpus, if something did."""
    settings = project.settings.adapt
    content = _model(project, folder) | _method("sft", settings)
    if after_corpus and settings.tuning == "lora":
        content["adapter_name_or_path"] = "output/pt"
    elif after_corpus:
        content["model_name_or_path"] = "output/pt"
        content.pop("model_revision", None)
    data = {
        "dataset": domain,
        "dataset_dir": ".",
        "eval_dataset": f"{domain}-val",
        **_template(project.settings.expert.model),
        "cutoff_len": settings.max_tokens,
    }
    judged = {"eval_strategy": "steps", "eval_steps": SAVE_STEPS, "per_device_eval_batch_size": 1}
    kept = {"save_steps": SAVE_STEPS, "output_dir": "output/sft"}
    return content | data | _schedule(settings, settings) | judged | kept


def _pretraining(project: Project, domain: str, folder: Path) -> dict[str, Any]:
    """Describe the reading of the corpus: packed blocks, the best checkpoint on held-out documents."""
    corpus, settings = project.settings.pretrain, project.settings.adapt
    data = {
        "dataset": f"{domain}-corpus",
        "dataset_dir": ".",
        "cutoff_len": corpus.block_tokens,
        "packing": True,
    }
    best = {"val_size": corpus.val_share, "eval_strategy": "steps", "eval_steps": 0.25, "save_steps": 0.25}
    best |= {"load_best_model_at_end": True, "output_dir": "output/pt"}
    return _model(project, folder) | _method("pt", settings) | data | _schedule(corpus, settings) | best


def _model(project: Project, folder: Path) -> dict[str, Any]:
    """Name the expert backbone; a folder of the project is named relative to the exported one."""
    named, local = project.settings.expert, project.root / project.settings.expert.model
    model = os.path.relpath(local.resolve(), folder.resolve()) if local.is_dir() else named.model
    return {"model_name_or_path": model} | ({"model_revision": named.revision} if named.revision else {})


def _method(stage: str, settings: AdaptSettings) -> dict[str, Any]:
    method = {"stage": stage, "do_train": True, "finetuning_type": settings.tuning}
    lora = {"lora_rank": settings.rank, "lora_alpha": 2 * settings.rank, "lora_target": "all"}
    return method | (lora if settings.tuning == "lora" else {"deepspeed": DEEPSPEED})


def _template(model: str) -> dict[str, Any]:
    """Name the template that renders the turns as the tokenizer does with thinking off.

    Qwen3 then opens the answer with an empty thought, which `qwen3` puts into the prompt and `qwen3_nothink`
    leaves out; only the 2507 instruct models have none. For other models LLaMA-Factory reads the tokenizer's
    own template.
    """
    name = model.lower()
    if not re.search(r"qwen3-\d+(\.\d+)?b", name):
        return {"enable_thinking": False}
    return {"template": "qwen3_nothink" if "instruct-2507" in name else "qwen3", "enable_thinking": False}


def _schedule(settings: AdaptSettings | PretrainSettings, run: AdaptSettings) -> dict[str, Any]:
    micro = min(settings.micro_batch_size, settings.batch_size)
    return {
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // micro,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": settings.warmup,
        "weight_decay": settings.weight_decay,
        "disable_gradient_checkpointing": not run.gradient_checkpointing,
        "bf16": True,
        "seed": run.seed,
        "logging_steps": 10,
        "report_to": "none",
    }


def _write(folder: Path, domain: str, step: str, content: dict[str, Any]) -> Path:
    path = folder / f"{step}.yaml"
    text = _HEADER.format(domain=domain, step=step) + yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True
    )
    path.write_text(text, encoding="utf-8")
    return path

"""The gag.yaml that `gag init` writes."""

import json
from pathlib import Path

import yaml

from gag.errors import SettingsError
from gag.project.parsing import PROJECT_FILE, parse_settings
from gag.project.settings import check_name

_EXAMPLE = """\
# A GAG project. `gag build {domain}` reads this file; unknown settings are refused.
base: {{model: {base}}}       # frozen: not one weight is ever changed
expert: {{model: {expert}}}   # one resident backbone, an adapter per domain; also the router's query encoder

# general: {{questions: data/general/questions.jsonl}}   # default: a list that comes with the package

domains:
  {quoted}:
    # One JSON object per line: {{"question": "...", "answer": "..."}}; also "id", "group", and Alpaca's keys.
    train: data/{domain}/train.jsonl       # teaches the expert and trains the projector
    # adapt: data/{domain}/adapt.jsonl     # or: rows for the expert alone
    # align: data/{domain}/align.jsonl     # and rows for the projector alone
    # test: data/{domain}/test.jsonl       # may share no group with align
    # corpus: data/{domain}/corpus.jsonl   # documents, {{"text": "..."}} per line: the expert reads them
    # first
    prompts:
      expert: You are an expert of this field. Write the background knowledge needed to answer the question.
      answer: Answer the question with the help of the knowledge given.

preset: {preset}   # ours: salient, vocabulary; the paper's: v1 (one vector), v4 (several)
# What one usually changes; what is not named here follows the preset:
adapt: {{tuning: lora, rank: 32, learning_rate: 2.0e-4, epochs: 8, batch_size: 128, micro_batch_size: 16}}
readout: {{max_new_tokens: {budget}, batch_tokens: 65536}}
align: {{learning_rate: {rate}, batch_size: 32, batch_tokens: 8192}}
decoding: {{max_new_tokens: 256}}
"""


def write_example(folder: Path, domain: str, base: str, expert: str, preset: str = "salient") -> Path:
    """Write an example gag.yaml and the folder for a first domain's data.

    An existing project is left alone.
    """
    path = folder / PROJECT_FILE
    if path.exists():
        raise SettingsError(f"{path} is already there; edit it, or choose another folder")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; choose another folder")
    models = {"base": json.dumps(base), "expert": json.dumps(expert)}
    chosen = parse_settings({"preset": preset, "base": {"model": base}, "expert": {"model": expert}})
    content = _EXAMPLE.format(
        domain=check_name(domain), quoted=_quoted(domain), **models, preset=preset,
        budget=chosen.readout.max_new_tokens, rate=f"{chosen.align.learning_rate:.1e}",
    )  # fmt: skip
    (folder / "data" / domain).mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def _quoted(name: str) -> str:
    """Return a name as YAML reads it back: `on`, `no` or `1e3` would be something else."""
    return name if yaml.safe_load(name) == name else json.dumps(name)

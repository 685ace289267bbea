"""The gag.yaml that `gag init` writes."""

import json
from dataclasses import dataclass
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
    {one}train: data/{domain}/train.jsonl       # teaches the expert and trains the projector
    {two}adapt: data/{domain}/{adapt_rows}.jsonl     # or: rows for the expert alone
    {two}align: data/{domain}/align.jsonl     # and rows for the projector alone
    {no_test}test: data/{domain}/test.jsonl       # may share no group with align
    # passages of documents, {{"text": "..."}} per line: the expert reads them first; with sources the domain
    # carries them, so that answers name their documents
    {no_corpus}corpus: data/{domain}/corpus.jsonl
    {no_corpus}sources: true
    prompts:
      expert: You are an expert of this field. Write the background knowledge needed to answer the question.
      answer: Answer the question with the help of the knowledge given.

preset: {preset}   # ours: salient, vocabulary; the paper's: v1 (one vector), v4 (several)
# What one usually changes; what is not named here follows the preset:
adapt: {{tuning: lora, rank: 32, learning_rate: {adapt}, epochs: 8, batch_size: {batch},
  micro_batch_size: {micro}}}
readout: {{max_new_tokens: {budget}, batch_tokens: 65536}}
align: {{learning_rate: {rate}, batch_size: {align_batch}, batch_tokens: 8192}}
decoding: {{max_new_tokens: 256}}
"""


@dataclass(frozen=True)
class Scale:
    """What a project's rows and models are like, where they are at hand.

    Attributes:
        rows: that teach.
        small: whether the expert is a small model, which takes larger steps.
        tested: whether there are rows that test.
    """

    rows: int
    small: bool
    tested: bool

    @property
    def batch(self) -> int:
        """Rows of a step: few rows take small steps, so that there are enough of them."""
        return next((size for size in (128, 64, 32) if self.rows >= 100 * size), 16)


def write_example(
    folder: Path, domain: str, base: str, expert: str, preset: str = "salient", scale: Scale | None = None
) -> Path:
    """Write an example gag.yaml and the folder for a first domain's data; an existing project is left alone.

    Args:
        folder: the project's.
        domain: its first domain.
        base: the frozen base.
        expert: the expert's backbone.
        preset: how the expert is read.
        scale: of the rows that are there already, made of documents; none: an example without data.

    Raises:
        SettingsError: a project is there already.
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
        one="# " if scale else "", two="" if scale else "# ", adapt_rows="train" if scale else "adapt",
        no_test="" if scale and scale.tested else "# ", no_corpus="" if scale else "# ",
        adapt="1.0e-3" if scale and scale.small else "2.0e-4", batch=scale.batch if scale else 128,
        micro=min(16, scale.batch) if scale else 16, align_batch=min(32, scale.batch) if scale else 32,
    )  # fmt: skip
    (folder / "data" / domain).mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def _quoted(name: str) -> str:
    """Return a name as YAML reads it back: `on`, `no` or `1e3` would be something else."""
    return name if yaml.safe_load(name) == name else json.dumps(name)

"""Stage II: train a domain's projector, so that the frozen base answers from its vectors."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gag.errors import MismatchError
from gag.models.backbone import Backbone
from gag.models.batching import in_length_batches
from gag.models.dry_run import PROBE, tried
from gag.models.language_model import Request, generate
from gag.models.loading import load_backbone
from gag.project import distributed
from gag.project.artifacts import read_manifest, writing
from gag.project.domain import PROJECTOR, ModelFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.inputs import DomainInputs
from gag.project.keys import stage_key
from gag.project.memory import peak_bytes
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import Example
from gag.project.run import Run, is_done
from gag.project.settings import EncoderSettings, PromptSettings
from gag.project.tensors import save_tensors
from gag.projection.alignment import Reader, Row, Split
from gag.projection.losses import label_loss
from gag.projection.trainer import train_projector
from gag.readout.store import StoredReadouts, read_store
from gag.routing.encoders import BackboneEncoder, SentenceEncoder
from gag.stages import readouts
from gag.stages.bridge import bridge_folder, open_bridge
from gag.training.report import curves, write_report
from gag.training.tracking import tracker


def made_from(inputs: DomainInputs) -> dict[str, Any]:
    """Name what the projector is made from."""
    return {
        "readouts": readouts.key(inputs),
        "settings": inputs.settings.align.key(),
        "base": inputs.base_key,
        "prompt": inputs.prompts.around(),
    } | _more(inputs)


def _more(inputs: DomainInputs) -> dict[str, Any]:
    align, found = inputs.settings.align, {}
    if align.bridge:
        found["bridge"] = _bridge_key(inputs)
    if align.distill:  # a row without an answer learns what the base writes
        found["decoding"] = inputs.settings.decoding.max_new_tokens
    return found


def _bridge_key(inputs: DomainInputs) -> str:
    return read_manifest(bridge_folder(inputs.root, str(inputs.settings.align.bridge)))["key"]


def key(inputs: DomainInputs) -> str:
    """Name the projector by what it is made from."""
    return stage_key(**made_from(inputs))


def align(project: Project, domain: str) -> Path:
    """Train the projector of a domain on its stored readouts; return the folder with the best one.

    Raises:
        ArtifactError: the readouts are not there, or were made from other inputs.
        MismatchError: an unfinished run of other inputs stands there.
        DataError: a loss is no number.
    """
    inputs = project.inputs(domain)
    folder, unfinished, wanted = inputs.run("align"), inputs.run("align.unfinished"), made_from(inputs)
    if is_done(folder, stage_key(**wanted), unfinished):
        say(f"align {domain}: already there")
        return folder
    started = time.monotonic()
    settings, base = inputs.settings.align, load_backbone(inputs.settings.base, inputs.root)
    stored = {
        split: read_store(inputs.run("readouts") / split, wanted["readouts"]) for split in readouts.SPLITS
    }
    train = _split(inputs, base, inputs.splits.align, stored["align"])
    val = _split(inputs, base, inputs.splits.val, stored["val"])
    if settings.bridge:
        expert = ModelFacts(**stored["align"].facts["expert"])
        folder_of = bridge_folder(inputs.root, settings.bridge)
        weights = open_bridge(folder_of, base.facts, expert, inputs.settings)
        train = replace(train, start=weights)
    if settings.semantic:
        train = replace(train, meanings=_meanings(inputs, base, train))
    run = Run(unfinished, wanted, tracker(inputs.settings.tracking, domain, "align", project.root / "runs"))
    projector, val_loss = train_projector(base, train, val, settings, run, f"align {domain}")
    facts = {
        "key": stage_key(**wanted),
        "rows": len(train.rows),
        "base": base.facts.model_dump(),
        "expert": stored["align"].facts["expert"],
        "settings": settings.model_dump(),
        "precision": str(base.model.dtype).removeprefix("torch."),
        "val_loss": val_loss,
        "seconds": round(time.monotonic() - started, 1),
        "peak_bytes": peak_bytes(),
    }
    if distributed.rank() == 0:
        with writing(folder, facts) as temporary:
            save_tensors(temporary / PROJECTOR, dict(projector.state_dict()))
            shutil.copy(run.log, temporary)
            told = {name: facts[name] for name in ("rows", "val_loss", "seconds", "precision", "settings")}
            write_report(temporary, f"align {domain}", told, curves(run.log, ("loss", "val_loss")))
    run.close()
    say(f"align {domain}: {len(train.rows)} rows, validation loss {val_loss:.3f}, {facts['seconds']:.0f} s")
    return folder


def try_alignment(base: Backbone) -> None:
    """Run two made-up rows as alignment will run real ones, and their loss backward to their vectors.

    Raises:
        MismatchError: the base cannot be aligned.
    """
    prompts = base.prompts
    rows = [
        Row(prompts.with_knowledge(q, PromptSettings()), prompts.answer("It is so."), [])
        for q in ("?", f"{PROBE} ?")
    ]
    vectors = torch.zeros(2, 1, base.width, device=base.device, requires_grad=True)

    def step() -> None:
        states = Reader(base, rows).read(vectors, rows)
        label_loss(base, states.before, states.labels).backward()

    tried(base, "alignment", step)


def _split(inputs: DomainInputs, base: Backbone, examples: list[Example], stored: StoredReadouts) -> Split:
    """Join rows with their slots."""
    if stored.ids != [example.id for example in examples]:
        raise MismatchError("the readouts are of other rows than the data file's; run `gag readouts` again")
    expert = ModelFacts(**stored.facts["expert"])
    width = ReadoutSettings(**stored.facts["settings"]).shape(expert.width, base.width)[-1]
    if stored.slots.shape[-1] != width:
        raise MismatchError(
            f"the readouts are {stored.slots.shape[-1]} wide, not {width}; run `gag readouts` again"
        )
    prompts, words = base.prompts, inputs.prompts
    around = [prompts.with_knowledge(example.question, words) for example in examples]
    if not inputs.settings.align.distill:
        answers = [prompts.answer(example.answers[0]) for example in examples]
        return Split([Row(*row, []) for row in zip(around, answers, strict=True)], stored.slots)
    pairs = zip(examples, stored.texts, strict=True)
    taught = [prompts.with_text(example.question, words, text) for example, text in pairs]
    answers = _learned(inputs, base, examples, taught)
    return Split([Row(*row) for row in zip(around, answers, taught, strict=True)], stored.slots)


def _learned(
    inputs: DomainInputs, base: Backbone, examples: list[Example], taught: list[list[int]]
) -> list[list[int]]:
    """Return the tokens that rows learn: the gold answer, or else the base's own with the expert's text."""
    prompts, decoding = base.prompts, inputs.settings.decoding
    asked = [prompt for example, prompt in zip(examples, taught, strict=True) if not example.answers]

    def write(batch: list[list[int]]) -> list[list[int]]:
        written = generate(base, [Request(base.embed(ids), decoding.max_new_tokens) for ids in batch])
        return [one.ids + [prompts.end] * (one.finish == "stop") for one in written]

    if asked:
        say(f"align {inputs.name}: {len(asked)} rows have no answer; they learn the base's own from the text")
    own = iter(distributed.broadcast(lambda: in_length_batches(asked, write, rows=decoding.batch_size)))
    return [prompts.answer(example.answers[0]) if example.answers else next(own) for example in examples]


def _meanings(inputs: DomainInputs, base: Backbone, train: Split) -> torch.Tensor:
    """Embed answers -> [N, E]: by a sentence encoder, or the expert backbone's mean state."""
    pairs = zip(inputs.splits.align, train.rows, strict=True)
    answers = [one.answers[0] if one.answers else base.prompts.decode(row.answer) for one, row in pairs]
    name, router = inputs.settings.align.semantic_encoder, inputs.settings.router
    if name is None:
        backbone = load_backbone(inputs.settings.expert, inputs.root)
        return BackboneEncoder(backbone, backbone.fingerprint, router).encode(answers)
    chosen = EncoderSettings(kind="sentence-transformers", model=name)
    return SentenceEncoder(router.changed(encoder=chosen, max_tokens=512), inputs.root).encode(answers)

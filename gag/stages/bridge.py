"""Train a projector for a pair of expert backbone and base on plain text alone, from which domains start.

The backbone, without any adapter, reads a sentence where an expert would have written it, and the base must
say it again from the vectors. No question, no answer and no domain is needed; every domain of the pair may
start there (`align.bridge`).
"""

import os
import random
import time
from pathlib import Path

import torch

from gag.errors import ArtifactError, DataError, MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.models.experts import Experts
from gag.models.language_model import check_room
from gag.models.loading import load_backbone
from gag.planning.limits import check_models
from gag.planning.models import Blueprint
from gag.project import distributed
from gag.project.artifacts import MANIFEST, is_current, read_manifest, writing
from gag.project.domain import CARD, PROJECTOR, ModelFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.keys import model_key, stage_key
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import digest, read_passages
from gag.project.run import Run
from gag.project.settings import ProjectSettings, PromptSettings
from gag.project.tensors import load_tensors, save_tensors
from gag.projection.alignment import Row, Split
from gag.projection.trainer import train_projector
from gag.readout.states import read
from gag.readout.vocabulary import load_vocabulary

ASK = "Repeat the text."
VAL_SHARE = 0.05
PART = 256  # texts read at a time


def bridge(project: Project, texts: Path, target: Path, licence: str) -> Path:
    """Train a bridge on the texts of a file; return its folder.

    Args:
        project: names the models, and how they are read and aligned.
        texts: JSONL of {"text": ...}, best a sentence each.
        target: the bridge's folder, under the project.
        licence: of the texts, for the card.

    Raises:
        DataError: too few texts.
    """
    settings, root = _plain(project.settings), project.root
    wanted = stage_key(
        texts=digest(texts),
        base=model_key(settings.base, root),
        expert=model_key(settings.expert, root),
        readout=settings.readout.key(),
        align=settings.align.key(),
    )
    if distributed.broadcast(lambda: is_current(target, wanted)):
        say(f"bridge {target.name}: already there")
        return target
    started = time.monotonic()
    passages = [passage.text for passage in read_passages(texts)]
    held_out = max(1, round(VAL_SHARE * len(passages)))
    if len(passages) < 10:
        raise DataError(f"{texts.name} has {len(passages)} texts; a bridge wants thousands")
    random.Random(settings.align.seed).shuffle(passages)
    splits, expert = _read(settings, root, {"val": passages[:held_out], "train": passages[held_out:]})
    base = load_backbone(settings.base, root)
    train, val = (_split(base, *splits[name]) for name in ("train", "val"))
    run = Run(project.root / "runs" / f"bridge-{target.name}.unfinished", {"key": wanted})
    projector, val_loss = train_projector(base, train, val, settings.align, run, f"bridge {target.name}")
    facts = {
        "key": wanted,
        "base": base.facts.model_dump(),
        "expert": expert.model_dump(),
        "readout": settings.readout.model_dump(),
        "projector": settings.align.projector,
        "texts": {"rows": len(passages), "sha256": digest(texts), "licence": licence},
        "val_loss": val_loss,
        "seconds": round(time.monotonic() - started, 1),
    }
    if distributed.rank() == 0:
        with writing(target, facts) as temporary:
            save_tensors(temporary / PROJECTOR, dict(projector.state_dict()))
            (temporary / CARD).write_text(_card(facts, base.facts, expert), encoding="utf-8")
    distributed.barrier()
    run.close()
    say(f"bridge {target.name}: {len(passages)} texts, validation loss {val_loss:.3f}")
    return target


def bridge_folder(root: Path, name: str) -> Path:
    """Return the folder that `align.bridge` names, inside the project.

    Raises:
        SettingsError: it leads out of the project, or no bridge is there.
    """
    folder = Path(os.path.normpath(root / name))
    if not folder.is_relative_to(os.path.normpath(root)):
        raise SettingsError(f"align.bridge: {name} leads out of the project; copy the bridge into it")
    if not (folder / MANIFEST).is_file():
        raise SettingsError(
            f"align.bridge: there is no bridge in {name}; run `gag bridge`, or copy one there"
        )
    return folder


def open_bridge(folder: Path, base: ModelFacts, expert: ModelFacts, settings: ProjectSettings) -> dict:
    """Load the weights of a bridge that fits a pair of models, a readout and a projector.

    Raises:
        ArtifactError: there is none, or it is harmed.
        MismatchError: it was made for other models, for another readout or projector.
    """
    facts = read_manifest(folder)
    if "texts" not in facts:
        raise ArtifactError(f"{folder.name} is no bridge; name a folder that `gag bridge` wrote")
    ModelFacts(**facts["base"]).check("base", base, f"the bridge {folder.name}")
    ModelFacts(**facts["expert"]).check("expert", expert, f"the bridge {folder.name}")
    theirs = _what(ReadoutSettings(**facts["readout"]), facts["projector"])
    ours = _what(settings.readout, settings.align.projector)
    if theirs != ours:
        raise MismatchError(
            f"the bridge {folder.name} was made for another readout ({theirs}, not {ours}); "
            "train one for this, or leave align.bridge out"
        )
    return load_tensors(folder / PROJECTOR)


def _what(readout: ReadoutSettings, projector: str) -> str:
    kind = f"{readout.space}, {readout.select}, layers {list(readout.layers)}, slots {readout.slots}"
    return f"{kind}, {projector}" + ("" if readout.select == "salient" else f", pooling {readout.pooling}")


def _plain(settings: ProjectSettings) -> ProjectSettings:
    """Return the settings of a bridge's own training: from no bridge, on texts that have no other answers."""
    return settings.changed(align=settings.align.changed(bridge=None, distill=0.0, semantic=0.0))


def _read(settings: ProjectSettings, root: Path, splits: dict[str, list[str]]) -> tuple[dict, ModelFacts]:
    """Let the backbone read each split's texts -> texts and slots by split, and the backbone's facts.

    Raises:
        SettingsError: a layer that the backbone does not have.
        MismatchError: the preset needs one tokenizer for both models.
        DataError: a text is longer than the backbone's positions.
    """
    check_models(settings, Blueprint(settings.base, root, "cpu"), Blueprint(settings.expert, root, "cpu"))
    experts = Experts(load_backbone(settings.expert, root))
    backbone, system = experts.backbone, PromptSettings().expert
    vocabulary = (
        load_vocabulary(settings.base, root, backbone.device)
        if settings.readout.space == "vocabulary"
        else None
    )
    found = {}
    with bar("bridge, reading", sum(map(len, splits.values()))) as advance:
        for name, texts in splits.items():
            slots = []
            for start in range(0, len(texts), PART):
                some = texts[start : start + PART]
                ids = [backbone.prompts.text(text) for text in some]
                asked = [ASK] * len(some)
                slots.append(read(experts, None, asked, system, settings.readout, vocabulary, ids).slots)
                advance(len(some))
            found[name] = (texts, torch.cat(slots))
    return found, experts.facts


def _split(base: Backbone, texts: list[str], slots: torch.Tensor) -> Split:
    prompts = base.prompts
    around = prompts.with_knowledge(ASK, PromptSettings())
    rows = [Row(around, prompts.answer(text), []) for text in texts]
    check_room(base, max(row.length for row in rows) + slots.shape[1], "the longest text")
    return Split(rows, slots)


def _card(facts: dict, base: ModelFacts, expert: ModelFacts) -> str:
    """Write the README.md of a bridge's folder."""
    texts = facts["texts"]
    return f"""# A bridge from {expert.model} to {base.model}

A projector that was trained on plain text alone: the expert backbone reads a text, and the frozen base
says it again from the vectors. It knows no domain; `align.bridge` in gag.yaml lets every domain of this
pair start from it.

- texts: {texts["rows"]}, SHA-256 `{texts["sha256"][:16]}…`, licence: {texts["licence"]}
- validation loss: {facts["val_loss"]:.4f} per token
- base fingerprint `{base.fingerprint[:12]}`, expert fingerprint `{expert.fingerprint[:12]}`
"""

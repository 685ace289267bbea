"""Between the stages: the tuned expert answers every alignment question, and its states are stored.

With `readout.folds`, an alignment question is read by an expert that was tuned without it (cross-fitting).
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from gag.errors import ArtifactError, DataError
from gag.models.experts import Experts, LoadedExperts
from gag.models.loading import load_backbone
from gag.planning.limits import check_limits
from gag.project import distributed
from gag.project.artifacts import MANIFEST, is_current, locked, read_manifest
from gag.project.domain import ModelFacts
from gag.project.inputs import DomainInputs
from gag.project.keys import stage_key
from gag.project.memory import peak_bytes
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import Example, fold_of
from gag.readout.states import Readout, read
from gag.readout.store import Shard, close_store, open_store, read_store, write_parts
from gag.readout.vocabulary import load_vocabulary
from gag.stages import adapt
from gag.training.report import Curve, write_report

SPLITS = ("align", "val")
Reads = Callable[[list[Example]], Readout]


def key(inputs: DomainInputs) -> str:
    """Name what the readouts are made from: the expert's weights as they stand, the rows, and how it is read.

    Raises:
        ArtifactError: the expert is not there, or was made from other inputs.
    """
    settings, predicts = inputs.settings.readout, inputs.settings.readout.space == "vocabulary"
    return stage_key(
        expert=_expert_weights(inputs),
        backbone=inputs.expert_key,
        prompt=inputs.prompts.expert,
        rows=inputs.split_key,
        settings=settings.key(),
        common=inputs.common,
        base=inputs.base_key if predicts else None,
    )


def readouts(project: Project, domain: str, shard: Shard | None = None) -> Path:
    """Write the readouts of a domain's alignment and validation rows, or a shard of them.

    Return their folder.

    Raises:
        ArtifactError: the expert is not there, or was made from other inputs.
    """
    inputs = project.inputs(domain)
    folder, wanted = inputs.run("readouts"), key(inputs)
    if distributed.broadcast(lambda: all(is_current(folder / split, wanted) for split in SPLITS)):
        say(f"readouts {domain}: already there")
        return folder
    started = time.monotonic()
    rows = {"align": inputs.splits.align, "val": inputs.splits.val}
    experts = _load_experts(project, inputs)
    mine = shard or Shard(distributed.rank(), distributed.world_size())
    with locked(folder, wait=True):  # shards may come at once
        for split in rows if distributed.rank() == 0 else ():
            open_store(folder / split, wanted, len(rows[split]), mine.count)
    distributed.barrier()
    with bar(f"readouts {domain}", sum(map(len, rows.values())) // mine.count) as advance:
        for split, chosen in rows.items():
            write_parts(folder / split, chosen, _reader(inputs, experts, split), advance, mine)
            distributed.barrier()
    for fold in (None, *adapt.folds(inputs)) if mine.count == 1 else ():
        experts.forget(_name(inputs, fold))  # a server would keep it; other shards may still want it
    seconds = round(time.monotonic() - started, 1)
    facts = {
        "settings": inputs.settings.readout.model_dump(),
        "writing": _writing_key(inputs),
        "expert": _facts(experts).model_dump(),
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
    }
    with locked(folder, wait=True):
        closed = [
            distributed.broadcast(lambda s=split: close_store(folder / s, wanted, facts, rows[s]))
            for split in SPLITS
        ]
    if not all(closed):
        share = f"shard {mine.index + 1} of {mine.count} is written, {seconds:.0f} s"
        say(f"readouts {domain}: {share}; others are not there yet")
        return folder
    if distributed.rank() == 0:
        _report(inputs, rows)
    say(f"readouts {domain}: {sum(map(len, rows.values()))} rows, {seconds:.0f} s")
    return folder


def _expert_weights(inputs: DomainInputs) -> dict[str, str]:
    """Return the hashes of the tuned weights; an expert of other inputs is refused."""
    folder = inputs.run("adapt")
    if not distributed.broadcast(lambda: is_current(folder, adapt.key(inputs))):
        raise ArtifactError(
            f"the expert of {inputs.name} is not there, or was made from other inputs; run `gag adapt "
            f"{inputs.name}`"
        )
    files = read_manifest(folder)["files"]
    return {name: sha for name, sha in files.items() if name.endswith(".safetensors")}


def _load_experts(project: Project, inputs: DomainInputs) -> LoadedExperts:
    """Load the domain's expert, and those of the folds."""
    folder = inputs.run("adapt")
    if project.settings.engine == "remote":
        from gag.remote.opening import open_experts

        experts = open_experts(project)
        _facts(experts).check("expert", experts.facts, inputs.name)
    else:
        experts = Experts(load_backbone(inputs.settings.expert, inputs.root))
    check_limits(inputs)
    experts.load(_name(inputs), folder / "expert")
    for fold in adapt.folds(inputs):
        experts.load(_name(inputs, fold), folder / f"fold-{fold}")
    return experts


def _facts(experts: LoadedExperts) -> ModelFacts:
    """Return the backbone's facts with its fingerprint; of one that runs elsewhere, from its files here."""
    return experts.facts if experts.facts.fingerprint else experts.backbone.facts


def _writing_key(inputs: DomainInputs) -> str:
    """Name what the texts alone are made from: readouts that differ in what they read of them share them."""
    return stage_key(
        expert=_expert_weights(inputs),
        backbone=inputs.expert_key,
        prompt=inputs.prompts.expert,
        rows=inputs.split_key,
        settings=inputs.settings.readout.writing_key(),
    )


def _written_before(inputs: DomainInputs, split: str, wanted: str) -> dict[tuple[str, str], list[int]]:
    """Return what the expert wrote, by id and question, where other readouts of this domain have it."""
    for manifest in sorted(inputs.run("adapt").parent.glob(f"**/readouts/{split}/{MANIFEST}")):
        try:
            stored = read_store(manifest.parent)
        except (ArtifactError, DataError):
            continue  # harmed, or being written
        rows = list(zip(stored.ids, stored.questions, strict=True))
        if stored.facts.get("writing") == wanted and len(set(rows)) == len(rows):
            return dict(zip(rows, stored.written, strict=True))
    return {}


def _reader(inputs: DomainInputs, experts: LoadedExperts, split: str) -> Reads:
    """Return what reads a part's rows: the domain's expert, or for alignment rows each fold's own."""
    settings, system = inputs.settings.readout, inputs.prompts.expert
    with experts.using(None) as backbone:
        device = backbone.device
    shared = settings.space == "vocabulary"
    vocabulary = load_vocabulary(inputs.settings.base, inputs.root, device) if shared else None

    known = _written_before(inputs, split, _writing_key(inputs))

    def plain(examples: list[Example], name: str = _name(inputs)) -> Readout:
        questions = [example.question for example in examples]
        written = [known[e.id, e.question] for e in examples] if known else None
        return read(experts, name, questions, system, settings, vocabulary, written, inputs.common)

    def crossed(examples: list[Example]) -> Readout:
        by_fold: dict[int, list[int]] = {}
        for i, example in enumerate(examples):
            by_fold.setdefault(fold_of(example, settings.folds), []).append(i)
        order = [i for fold in sorted(by_fold) for i in by_fold[fold]]
        parts = [plain([examples[i] for i in by_fold[fold]], _name(inputs, fold)) for fold in sorted(by_fold)]
        return _in_order(parts, order)

    return crossed if settings.folds > 1 and split == "align" else plain


def _in_order(parts: list[Readout], order: list[int]) -> Readout:
    """Join readouts whose rows stand in some order, and put them back into theirs."""
    back = sorted(range(len(order)), key=order.__getitem__)
    slots = torch.cat([part.slots for part in parts])[back]
    texts = [text for part in parts for text in part.texts]
    empty = [one for part in parts for one in part.empty]
    words = [one for part in parts for one in part.words]
    ids = [one for part in parts for one in part.ids]
    return Readout(
        slots=slots,
        texts=[texts[i] for i in back],
        empty=[empty[i] for i in back],
        words=[words[i] for i in back],
        ids=[ids[i] for i in back],
    )


def _name(inputs: DomainInputs, fold: int | None = None) -> str:
    """Name an expert by its weights: a server may still hold another one of this domain."""
    weights = stage_key(expert=_expert_weights(inputs))[:12]
    return f"{inputs.name}@{weights}" if fold is None else f"{inputs.name}:fold-{fold}@{weights}"


def _report(inputs: DomainInputs, rows: dict[str, list[Example]]) -> None:
    """Write how long the texts are, and how much of the gold answers' words they hold.

    A large difference means that the expert knows alignment's answers by heart: cross-fitting is for that.
    """
    folder, shares, counts, lines = inputs.run("readouts"), {}, {}, []
    for split, examples in rows.items():
        texts = read_store(folder / split).texts
        pairs = zip(texts, examples, strict=True)
        held = [_held(text, example.answers[0]) for text, example in pairs if example.answers]
        shares[split] = f"{sum(held) / len(held):.2f}" if held else "unknown: no row has an answer"
        counts[split] = {"rows": len(texts), "share of the answers' words in the texts": shares[split]}
        lengths = sorted(len(text.split()) for text in texts)
        lines.append(Curve(split, [i / len(lengths) for i in range(len(lengths))], lengths))
    say(
        f"readouts {inputs.name}: share of the answers' words in the texts: {shares['align']}, in validation "
        f"{shares['val']}"
    )
    told = counts | {"settings": inputs.settings.readout.model_dump()}
    write_report(folder, f"readouts {inputs.name}", told, lines, ("share of the questions", "words written"))


def _held(text: str, answer: str) -> float:
    words = answer.lower().split()
    return sum(word in text.lower() for word in words) / len(words)

"""Between the stages: let the tuned expert write on every alignment question, and store the states that are read.

With `readout.folds`, an alignment question is read by an expert that was tuned without it (cross-fitting).
"""

import time
from pathlib import Path
from typing import Any

import torch

from gag.errors import ArtifactError
from gag.models.backbone import load_backbone
from gag.models.experts import Experts
from gag.project import distributed
from gag.project.artifacts import is_current, locked
from gag.project.inputs import align_file, alignment_rows
from gag.project.progress import bar, say
from gag.project.project import Project
from gag.project.rows import Example, digest, fold_of
from gag.project.run import model_key, stage_key
from gag.readout.states import Readout, read
from gag.readout.store import Shard, close_store, open_store, read_store, write_parts
from gag.readout.vocabulary import load_table
from gag.stages import adapt
from gag.training.report import Curve, write_report

SPLITS = ("align", "val")


def key(project: Project, domain: str) -> str:
    """Name what the readouts are made from."""
    described = project.described(domain)
    return stage_key(
        expert=adapt.key(project, domain),
        align=digest(align_file(project, domain)),
        val=digest(project.file(described.val)) if described.val else None,
        settings=project.settings.readout.model_dump(exclude={"batch_tokens"}),
        seed=project.settings.align.seed,
        **({"base": model_key(project.settings.base, project.root)} if _foretells(project) else {}),
    )


def readouts(project: Project, domain: str, shard: Shard | None = None) -> Path:
    """Write the readouts of a domain's alignment and validation rows, or a shard of them; return their folder."""
    folder, wanted = project.run(domain, "readouts"), key(project, domain)
    if distributed.broadcast(lambda: all(is_current(folder / split, wanted) for split in SPLITS)):
        say(f"readouts {domain}: already there")
        return folder
    started = time.monotonic()
    rows = alignment_rows(project, domain)
    experts = _load_experts(project, domain)
    mine = shard or Shard(distributed.rank(), distributed.world_size())
    total = sum(map(len, rows.values())) // mine.count
    with bar(f"readouts {domain}", total) as advance:
        with locked(folder, wait=True):  # shards may come at once
            for split in rows if distributed.rank() == 0 else ():
                open_store(folder / split, wanted)
        distributed.barrier()
        for split, chosen in rows.items():
            write_parts(folder / split, chosen, _reader(project, domain, experts, split), advance, mine)
            distributed.barrier()
    taken = round(time.monotonic() - started, 1)
    seconds = f"{taken:.0f} s"
    facts = {
        "settings": project.settings.readout.model_dump(),
        "expert": experts.facts.model_dump(),
        "seconds": taken,
    }
    with locked(folder, wait=True):
        closed = [
            distributed.broadcast(lambda s=s: close_store(folder / s, wanted, facts, rows[s])) for s in SPLITS
        ]
    if not all(closed):
        say(
            f"readouts {domain}: shard {mine.index + 1} of {mine.count} is written, {seconds}; others are not there yet"
        )
        return folder
    if distributed.rank() == 0:
        _report(project, domain, rows)
    say(f"readouts {domain}: {sum(map(len, rows.values()))} rows, {seconds}")
    return folder


def _load_experts(project: Project, domain: str) -> Experts:
    """Load the domain's expert, and those of the folds."""
    folder = project.run(domain, "adapt")
    if not distributed.broadcast(lambda: is_current(folder, adapt.key(project, domain))):
        raise ArtifactError(
            f"the expert of {domain} is not there, or was made from other inputs; run `gag adapt {domain}`"
        )
    experts = Experts(load_backbone(project.settings.expert, project.root))
    adapt.check_readable(project, experts.backbone)
    experts.load(domain, folder / "expert")
    for fold in adapt.folds(project):
        experts.load(_fold_name(domain, fold), folder / f"fold-{fold}")
    return experts


def _reader(project: Project, domain: str, experts: Experts, split: str) -> Any:
    """Return what reads a part's rows: the domain's expert, or for alignment rows each fold's own."""
    settings, system = project.settings.readout, project.described(domain).prompts.expert
    table = load_table(project.settings.base, project.root, experts.backbone) if _foretells(project) else None

    def plain(examples: list[Example], name: str = domain) -> Readout:
        with experts.using(name) as expert:
            return read(expert, [e.question for e in examples], system, settings, table)

    def crossed(examples: list[Example]) -> Readout:
        folds = [fold_of(e, settings.folds) for e in examples]
        order = sorted(range(len(examples)), key=lambda i: folds[i])
        parts = [
            plain([examples[i] for i in order if folds[i] == fold], _fold_name(domain, fold))
            for fold in sorted(set(folds))
        ]
        back = sorted(range(len(order)), key=order.__getitem__)
        texts, empty = [t for p in parts for t in p.texts], [e for p in parts for e in p.empty]
        return Readout(
            torch.cat([p.slots for p in parts])[back], [texts[i] for i in back], [empty[i] for i in back]
        )

    return crossed if settings.folds > 1 and split == "align" else plain


def _foretells(project: Project) -> bool:
    return project.settings.readout.space == "vocabulary"


def _fold_name(domain: str, fold: int) -> str:
    return f"{domain}:fold-{fold}"


def _report(project: Project, domain: str, rows: dict[str, list[Example]]) -> None:
    """Write how long the texts are, and how much of the gold answers' words they hold in alignment and in validation.

    A large difference means that the expert knows alignment's answers by heart: cross-fitting is for that.
    """
    folder, facts, lines = project.run(domain, "readouts"), {}, []
    for split, examples in rows.items():
        texts = read_store(folder / split).texts
        held = [_held(text, e.answers[0]) for text, e in zip(texts, examples, strict=True)]
        facts[split] = {"rows": len(texts), "share of the answers' words in the texts": sum(held) / len(held)}
        lengths = sorted(len(text.split()) for text in texts)
        lines.append(Curve(split, [i / len(lengths) for i in range(len(lengths))], lengths))
    shares = [facts[split]["share of the answers' words in the texts"] for split in SPLITS]
    facts |= {"gap between alignment and validation": shares[0] - shares[1]}
    say(f"readouts {domain}: texts hold {shares[0]:.2f} of the answers' words, {shares[1]:.2f} in validation")
    settings = {"settings": project.settings.readout.model_dump()}
    write_report(
        folder, f"readouts {domain}", facts | settings, lines, ("share of the questions", "words written")
    )


def _held(text: str, answer: str) -> float:
    words = answer.lower().split()
    return sum(word in text.lower() for word in words) / len(words)

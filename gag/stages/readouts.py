"""Between the stages: let the tuned expert write on every alignment question, and store the states that are read."""

import time
from pathlib import Path

from gag.artifacts import MANIFEST, is_current
from gag.backbone import load_backbone
from gag.config import Project
from gag.data import align_file, alignment_rows
from gag.errors import ArtifactError
from gag.expert import Experts
from gag.progress import bar, say
from gag.readout import read_all
from gag.readout_store import write_store
from gag.records import digest
from gag.stages import adapt
from gag.training import stage_key

SPLITS = ("align", "val")


def key(project: Project, domain: str) -> str:
    """Name what the readouts are made from."""
    described = project.described(domain)
    return stage_key(
        expert=adapt.key(project, domain),
        align=digest(align_file(project, domain)),
        val=digest(project.file(described.val)) if described.val else None,
        settings=project.settings.readout.model_dump(exclude={"batch_size"}),
        seed=project.settings.align.seed,
    )


def readouts(project: Project, domain: str) -> Path:
    """Write the readouts of a domain's alignment and validation rows; return their folder."""
    folder = project.run(domain, "readouts")
    wanted = key(project, domain)
    if all((folder / split / MANIFEST).is_file() and is_current(folder / split, wanted) for split in SPLITS):
        say(f"readouts {domain}: already there")
        return folder
    started = time.monotonic()
    rows = alignment_rows(project, domain)
    if not is_current(project.run(domain, "adapt"), adapt.key(project, domain)):
        raise ArtifactError(f"the expert of {domain} is not there, or was made from other inputs; run `gag adapt {domain}`")
    experts = Experts(load_backbone(project.settings.expert, project.root))
    experts.load(domain, project.run(domain, "adapt") / "expert")
    settings, system = project.settings.readout, project.described(domain).prompts.expert
    facts = {"settings": settings.model_dump(), "expert": experts.facts.model_dump()}
    total = sum(map(len, rows.values()))
    with experts.using(domain) as expert, bar(f"readouts {domain}", total) as advance:
        for split, chosen in rows.items():
            write_store(folder / split, wanted, facts, chosen, lambda batch: read_all(expert, batch, system, settings), advance)
    say(f"readouts {domain}: {total} rows, {time.monotonic() - started:.0f} s")
    return folder

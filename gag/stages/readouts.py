"""Between the stages: let the tuned expert write on every alignment question, and store the states that are read."""

import time
from pathlib import Path

from gag.artifacts import MANIFEST, is_current
from gag.backbone import load_backbone
from gag.config import Project
from gag.errors import DataError, SettingsError
from gag.expert import Experts
from gag.progress import bar, say
from gag.readout import read_all
from gag.readout_store import write_store
from gag.records import Example, check_disjoint, digest, read_examples, split_groups
from gag.stages import adapt
from gag.training import stage_key

VAL_SHARE = 0.1
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


def align_file(project: Project, domain: str) -> Path:
    """Return the file that trains the projector."""
    name = project.described(domain).file("align")
    if name is None:
        raise SettingsError(f"{domain} has no rows for its projector; set domains.{domain}.train or .align in gag.yaml")
    return project.file(name)


def examples(project: Project, domain: str) -> dict[str, list[Example]]:
    """Return the rows of alignment and of its validation; no group is in both, nor in the test file."""
    described = project.described(domain)
    align = read_examples(align_file(project, domain))
    if described.val:
        val = read_examples(project.file(described.val))
        check_disjoint(align, val, ("align", "val"))
    else:
        align, val = split_groups(align, VAL_SHARE, project.settings.align.seed)
    if not align or not val:
        raise DataError(f"{domain} has too few groups in its align rows for training and validation; add rows")
    if described.test:
        test = read_examples(project.file(described.test))
        check_disjoint(align, test, ("align", "test"))
        check_disjoint(val, test, ("val", "test"))
    return {"align": align, "val": val}


def readouts(project: Project, domain: str) -> Path:
    """Write the readouts of a domain's alignment and validation rows; return their folder."""
    folder = project.run(domain, "readouts")
    wanted = key(project, domain)
    if all((folder / split / MANIFEST).is_file() and is_current(folder / split, wanted) for split in SPLITS):
        say(f"readouts {domain}: already there")
        return folder
    started = time.monotonic()
    rows = examples(project, domain)
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

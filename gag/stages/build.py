"""Run what is missing of a domain's stages and put the results together as a plug-in folder."""

import datetime
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gag.engine.domain import EXPERT, MANIFEST, PROJECTOR
from gag.errors import ArtifactError
from gag.project import distributed
from gag.project.artifacts import is_current, load_tensors, locked, read_manifest, save_tensors, writing
from gag.project.inputs import check
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import digest
from gag.project.run import stage_key
from gag.project.settings import GENERAL
from gag.routing.bank import FILE, QUESTIONS
from gag.stages import adapt, align, prototypes, readouts

STAGES = {
    "adapt": adapt.adapt,
    "readouts": readouts.readouts,
    "align": align.align,
    "prototypes": prototypes.prototypes,
}


def build(project: Project, domains: list[str]) -> dict[str, float]:
    """Build domains, and the general bank; return the seconds of each stage."""
    seconds: dict[str, float] = {}
    check(project, domains)
    with locked(project.root / "runs"):
        with _timed(seconds, f"prototypes {GENERAL}"):
            prototypes.prototypes(project, GENERAL)
        for domain in domains:
            for name, stage in STAGES.items():
                with _timed(seconds, f"{name} {domain}"):
                    stage(project, domain)
            if distributed.rank() == 0:
                _assemble(project, domain)
            distributed.barrier()
    return seconds


def _assemble(project: Project, domain: str) -> None:
    """Put expert, projector, bank, description and card into the plug-in folder."""
    folder = project.domain(domain)
    wanted = stage_key(align=align.key(project, domain), bank=prototypes.key(project, domain))
    if is_current(folder, wanted, MANIFEST):
        say(f"build {domain}: already there")
        return
    if _was_added_to(folder):
        say(
            f"build {domain}: what `gag prototypes {domain} --add` added to its bank is gone; add those files again"
        )
    aligned = read_manifest(project.run(domain, "align"))
    facts = {
        "key": wanted,
        "name": domain,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "base": aligned["base"],
        "expert": aligned["expert"],
        "tuning": project.settings.adapt.tuning,
        "projector": project.settings.align.projector,
        "readout": project.settings.readout.model_dump(mode="json"),
        "prompts": project.described(domain).prompts.model_dump(),
        "bank": read_manifest(project.run(domain, "prototypes"))["bank"],
        "data": _data(project, domain),
        "scores": {"val_loss": aligned["val_loss"]},
    }
    with writing(folder, facts, MANIFEST) as temporary:
        shutil.copytree(project.run(domain, "adapt") / "expert", temporary / EXPERT)
        trained = load_tensors(project.run(domain, "align") / PROJECTOR)
        half = getattr(
            torch, aligned["precision"]
        )  # the module is stored in the precision of the base it speaks to
        save_tensors(temporary / PROJECTOR, {name: tensor.to(half) for name, tensor in trained.items()})
        for name in (FILE, QUESTIONS):
            if (project.run(domain, "prototypes") / name).is_file():
                shutil.copy(project.run(domain, "prototypes") / name, temporary)
        (temporary / "README.md").write_text(_card(facts), encoding="utf-8")
    say(f"build {domain}: domains/{domain} is ready")


def _was_added_to(folder: Path) -> bool:
    try:
        return bool(read_manifest(folder, MANIFEST)["bank"].get("added"))
    except ArtifactError:
        return False


def _data(project: Project, domain: str) -> dict[str, str]:
    described = project.described(domain)
    named = {
        "adapt": described.file("adapt"),
        "align": described.file("align"),
        "val": described.val,
        "test": described.test,
    }
    return {role: digest(project.file(name)) for role, name in named.items() if name}


def _card(facts: dict[str, Any]) -> str:
    base, expert = facts["base"], facts["expert"]
    return f"""# {facts["name"]}

A GAG domain: private knowledge for a frozen base, as a folder.

| | |
|---|---|
| base | {base["model"]}, width {base["width"]}, fingerprint `{base["fingerprint"][:12]}` |
| expert | {expert["model"]}, {facts["tuning"]} tuning, width {expert["width"]}, fingerprint `{expert["fingerprint"][:12]}` |
| readout | layers {list(facts["readout"]["layers"])}, pooling {facts["readout"]["pooling"]} |
| router bank | {facts["bank"]["centres"]} centres of {facts["bank"]["count"]} questions; {facts["bank"]["held_out"]} held out |
| validation loss | {facts["scores"]["val_loss"]:.4f} per answer token |
| built | {facts["created"]} |

## Data

{_listed(facts["data"])}

## Intended use and limits

To answer questions of the field that these rows teach, by the frozen base named above. What the expert was not taught it
cannot pass on, and an answer that sounds sure can be wrong: `gag evaluate {facts["name"]} --evidence` says how often answers
are right on test rows and how much the vectors did for them, `gag compare {facts["name"]}` how other methods do. The expert's
weights{", the vectors of some questions" if facts["bank"]["held_out"] else ""} and the bank can give away what they were
made from: share this folder as you would share the data.

## Use

Copy this folder into `domains/` of a project with the same base and expert, or run `gag domains add FOLDER`.
Then `gag domains verify` checks it. `domain.json` holds the hashes of the files and of the data it was built from.
"""


def _listed(data: dict[str, str]) -> str:
    return (
        "\n".join(f"- {role}: SHA-256 `{hashed[:16]}…`" for role, hashed in data.items()) or "- not recorded"
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 2)

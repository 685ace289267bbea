"""Build a domain's bank for the router from its questions; `general` is a domain like the others."""

import time
from pathlib import Path
from typing import Any

from gag import ranks
from gag.artifacts import is_current, writing
from gag.backbone import load_backbone
from gag.config import Project
from gag.data import questions_file
from gag.encoder import BackboneEncoder
from gag.progress import say
from gag.prototypes import build_bank
from gag.records import digest, read_questions
from gag.run_report import Curve, write_report
from gag.settings import GENERAL
from gag.training import model_key, stage_key


def key(project: Project, domain: str) -> str:
    """Name what the bank is made from."""
    return stage_key(
        questions=digest(questions_file(project, domain)),
        settings=project.settings.router.model_dump(exclude={"batch_size", "margin"}),
        encoder=model_key(project.settings.expert, project.root),
    )


def folder(project: Project, domain: str) -> Path:
    """Return where the bank is written."""
    return project.general if domain == GENERAL else project.run(domain, "prototypes")


def prototypes(project: Project, domain: str) -> Path:
    """Encode the domain's distinct questions and cluster them; return the folder with the bank."""
    target = folder(project, domain)
    wanted = key(project, domain)
    if ranks.decide(lambda: is_current(target, wanted)):
        say(f"prototypes {domain}: already there")
        return target
    if ranks.rank() == 0:
        _build(project, domain, target, wanted)
    ranks.wait()
    return target


def _build(project: Project, domain: str, target: Path, wanted: str) -> None:
    started = time.monotonic()
    questions = list(dict.fromkeys(read_questions(questions_file(project, domain))))
    backbone = load_backbone(project.settings.expert, project.root)
    settings = project.settings.router
    encoder = BackboneEncoder(backbone, backbone.fingerprint, settings)
    kept = questions[: settings.max_questions]
    vectors = encoder.encode(kept)  # [N, Dq]
    bank = build_bank(vectors, encoder.spec, settings)
    nearest = sorted((vectors @ bank.centres.T).amax(1).tolist())
    curve = Curve("cosine", [i / len(nearest) for i in range(len(nearest))], nearest)
    facts: dict[str, Any] = {"key": wanted}
    with writing(target, facts) as temporary:
        facts["bank"] = bank.save(temporary)
        axes = ("share of the questions", "cosine to the nearest centre")
        write_report(temporary, f"prototypes {domain}", {**facts, "settings": settings.model_dump()}, [curve], axes)
    say(f"prototypes {domain}: {len(bank.centres)} centres of {bank.count} questions, {time.monotonic() - started:.0f} s")

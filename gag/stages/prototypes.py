"""Build a domain's bank for the router from its questions, or add new ones to it; `general` is a domain like the others."""

import shutil
import time
from pathlib import Path
from typing import Any

from gag.engine.domain import MANIFEST as DOMAIN_MANIFEST
from gag.errors import DataError
from gag.models.backbone import load_backbone
from gag.project import distributed
from gag.project.artifacts import MANIFEST, is_current, read_manifest, writing
from gag.project.inputs import questions_file
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import digest, read_grouped
from gag.project.run import stage_key
from gag.project.settings import GENERAL
from gag.routing.backbone_encoder import QueryEncoder
from gag.routing.bank import FILE, QUESTIONS, Bank, build_bank, encode_questions, load_bank, load_questions
from gag.routing.encoders import cached, encoder_key, make_encoder
from gag.training.report import Curve, write_report


def key(project: Project, domain: str) -> str:
    """Name what the bank is made from."""
    return stage_key(
        questions=digest(questions_file(project, domain)),
        settings=project.settings.router.model_dump(
            exclude={"batch_size", "margin", "alpha", "rule", "encoder"}
        ),
        encoder=encoder_key(project),
    )


def folder(project: Project, domain: str) -> Path:
    """Return where the bank is written."""
    return project.general if domain == GENERAL else project.run(domain, "prototypes")


def prototypes(project: Project, domain: str) -> Path:
    """Encode the domain's distinct questions, cluster and sum them up; return the folder with the bank."""
    target = folder(project, domain)
    wanted = key(project, domain)
    if distributed.broadcast(lambda: is_current(target, wanted)):
        say(f"prototypes {domain}: already there")
        return target
    if distributed.rank() == 0:
        _build(project, domain, target, wanted)
    distributed.barrier()
    return target


def add_questions(project: Project, domain: str, file: Path) -> Path:
    """Add a file's questions to the bank of a domain that is present, without the old ones; return the changed folder."""
    target = project.general if domain == GENERAL else project.domain(project.require(domain))
    manifest = MANIFEST if domain == GENERAL else DOMAIN_MANIFEST
    content = read_manifest(target, manifest)
    grouped, added = read_grouped(file), content["bank"].get("added", [])
    if digest(file) in added:
        raise DataError(f"{file.name} was added to the bank of {domain} before; give new questions")
    settings, encoder = project.settings.router, _encoder(project)
    bank = load_bank(target, content["bank"])
    bank.check(encoder.spec, domain)
    fresh = encode_questions(grouped, encoder, settings)
    updated = bank.updated(fresh, settings)
    facts = {name: value for name, value in content.items() if name not in ("schema", "files")}
    with writing(target, facts, manifest) as temporary:
        shutil.copytree(target, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILE, manifest))
        facts["bank"] = updated.save(temporary) | {"added": [*added, digest(file)]}
        if (target / QUESTIONS).is_file():
            load_questions(target).and_also(fresh).save(temporary)
    say(f"prototypes {domain}: {len(fresh.texts)} questions added: {_described(updated)}")
    return target


def _build(project: Project, domain: str, target: Path, wanted: str) -> None:
    started = time.monotonic()
    settings, encoder = project.settings.router, _encoder(project)
    encoded = encode_questions(read_grouped(questions_file(project, domain)), encoder, settings)
    bank = build_bank(encoded, encoder.spec, settings)
    nearest = sorted((encoded.vectors @ bank.centres.T).amax(1).tolist())
    curve = Curve("cosine", [i / len(nearest) for i in range(len(nearest))], nearest)
    facts: dict[str, Any] = {"key": wanted}
    with writing(target, facts) as temporary:
        facts["bank"] = bank.save(temporary)
        if settings.keep_questions:
            encoded.save(temporary)
        axes = ("share of the questions", "cosine to the nearest centre")
        write_report(
            temporary, f"prototypes {domain}", {**facts, "settings": settings.model_dump()}, [curve], axes
        )
    say(f"prototypes {domain}: {_described(bank)}, {time.monotonic() - started:.0f} s")


def _described(bank: Bank) -> str:
    said = f"{len(bank.centres)} centres of {bank.count} questions, {len(bank.held_out)} held out"
    width = bank.encoder.width
    return (
        said
        if bank.count > width
        else f"{said} (fewer questions than a vector's {width} numbers, which is fine)"
    )


def _encoder(project: Project) -> QueryEncoder:
    encoder = make_encoder(project, lambda: load_backbone(project.settings.expert, project.root))
    return cached(encoder, project)

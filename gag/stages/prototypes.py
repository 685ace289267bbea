"""Build a domain's bank for the router from its questions, or add new ones to it.

`general` is a domain like the others.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gag.errors import DataError
from gag.project import distributed
from gag.project.artifacts import MANIFEST, is_current, read_manifest, writing
from gag.project.domain import BANK, DOMAIN, QUESTIONS, STATISTICS, BankFacts
from gag.project.inputs import general_questions
from gag.project.keys import stage_key
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import digest, read_grouped
from gag.project.settings import BANK as BANK_STAGE
from gag.project.settings import GENERAL
from gag.routing.bank import MemoryBank, check_encoder, load_bank
from gag.routing.building import build_bank, encode_questions, load_questions, updated
from gag.routing.encoders import cached, encoder_key
from gag.routing.query_encoder import QueryEncoder
from gag.routing.state import project_encoder
from gag.training.report import Curve, write_report


def questions_file(project: Project, domain: str) -> Path:
    """Return the questions that stand for a domain: its alignment rows, or the general list."""
    if domain == GENERAL:
        return general_questions(project.settings, project.root)
    return project.inputs(domain).align


def key(project: Project, domain: str) -> str:
    """Name what the bank is made from."""
    return stage_key(
        questions=digest(questions_file(project, domain)),
        settings=project.settings.router.key(BANK_STAGE),
        encoder=encoder_key(project),
    )


def folder(project: Project, domain: str) -> Path:
    """Return where the bank is written."""
    return project.general if domain == GENERAL else project.run(domain, "prototypes")


def prototypes(project: Project, domain: str, encoder: Callable[[], QueryEncoder] | None = None) -> Path:
    """Encode the domain's distinct questions, cluster and sum them up; return the folder with the bank.

    Args:
        project: whose domain it is.
        domain: one that gag.yaml describes, or `general`.
        encoder: makes the project's query encoder, where several banks are made with one.
    """
    target, wanted = folder(project, domain), key(project, domain)
    if distributed.broadcast(lambda: is_current(target, wanted)):
        say(f"prototypes {domain}: already there")
        return target
    if distributed.rank() == 0:
        made = encoder() if encoder else cached(project_encoder(project), project)
        _build(project, domain, target, wanted, made)
    distributed.barrier()
    return target


def add_questions(project: Project, domain: str, file: Path) -> Path:
    """Add a file's questions to the bank of a domain that is present, without the old ones.

    Returns:
        The changed folder.

    Raises:
        DataError: the file was added before.
        MismatchError: the bank was made by another encoder.
    """
    target = project.general if domain == GENERAL else project.domain(project.require(domain))
    manifest = MANIFEST if domain == GENERAL else DOMAIN
    content = read_manifest(target, manifest)
    recorded, grouped = BankFacts(**content["bank"]), read_grouped(file)
    if digest(file) in recorded.added:
        raise DataError(f"{file.name} was added to the bank of {domain} before; give new questions")
    settings, encoder = project.settings.router, cached(project_encoder(project), project)
    bank = load_bank(target, recorded, content["files"])
    check_encoder(bank, encoder.spec, domain)
    fresh = encode_questions(grouped, encoder, settings)
    grown = updated(bank, fresh, settings)
    facts = {name: value for name, value in content.items() if name not in ("schema", "files")}
    with writing(target, facts, manifest) as temporary:
        left = shutil.ignore_patterns(BANK, STATISTICS, manifest, ".*")
        shutil.copytree(target, temporary, dirs_exist_ok=True, ignore=left)
        saved = grown.save(temporary).model_dump(mode="json")
        facts["bank"] = saved | {"added": [*recorded.added, digest(file)]}
        if (target / QUESTIONS).is_file():
            load_questions(target).joined(fresh).save(temporary)
    say(f"prototypes {domain}: {len(fresh.texts)} questions added: {_described(grown)}")
    return target


def _build(project: Project, domain: str, target: Path, wanted: str, encoder: QueryEncoder) -> None:
    started, settings = time.monotonic(), project.settings.router
    encoded = encode_questions(read_grouped(questions_file(project, domain)), encoder, settings)
    bank = build_bank(encoded, encoder.spec, settings)
    nearest = sorted((encoded.vectors @ bank.centres.T).amax(1).tolist())
    curve = Curve("cosine", [i / len(nearest) for i in range(len(nearest))], nearest)
    facts: dict[str, Any] = {"key": wanted}
    with writing(target, facts) as temporary:
        facts["bank"] = bank.save(temporary).model_dump(mode="json")
        if settings.keep_questions:
            encoded.save(temporary)
        axes = ("share of the questions", "cosine to the nearest centre")
        told = {**facts, "settings": settings.model_dump()}
        write_report(temporary, f"prototypes {domain}", told, [curve], axes)
    say(f"prototypes {domain}: {_described(bank)}, {time.monotonic() - started:.0f} s")


def _described(bank: MemoryBank) -> str:
    said = f"{len(bank.centres)} centres of {bank.count} questions, {len(bank.held_out)} held out"
    width = bank.encoder.width
    few = f"{said} (fewer questions than a vector's {width} numbers, which is fine)"
    return said if bank.count > width else few

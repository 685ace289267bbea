"""Build a domain's bank for the router from its questions, or add new ones to it.

`general` is a domain like the others.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

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
from gag.routing.building import Encoded, build_bank, encode_questions, load_questions, sample_size, updated
from gag.routing.doubts import strays
from gag.routing.encoders import cached, encoder_key
from gag.routing.folds import judge
from gag.routing.query_encoder import QueryEncoder
from gag.routing.router import Router
from gag.routing.state import project_encoder
from gag.routing.temperatures import summed
from gag.training.report import Curve, write_report

IMPORTED = "imported"  # in the manifest of a bank that was taken from a file of prototypes


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
    target = folder(project, domain)
    if domain == GENERAL and project.settings.router.rule == "ppr" and _is_imported(target):
        say(f"prototypes {domain}: it was imported, and stays; remove {target.name}/ to make it of questions")
        return target
    wanted = key(project, domain)
    if distributed.broadcast(lambda: is_current(target, wanted)):
        say(f"prototypes {domain}: already there")
        return target
    if distributed.rank() == 0:
        made = encoder() if encoder else cached(project_encoder(project), project)
        _build(project, domain, target, wanted, made)
    distributed.barrier()
    return target


def _is_imported(target: Path) -> bool:
    return (target / MANIFEST).is_file() and IMPORTED in read_manifest(target)


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
    if not recorded.sample:
        raise DataError(
            f"the bank of {domain} holds centres alone, which were imported; make one of all its questions: "
            f"`gag prototypes {domain}`"
        )
    settings, encoder = project.settings.router, cached(project_encoder(project), project)
    bank = load_bank(target, recorded, content["files"])
    check_encoder(bank, encoder.spec, domain)
    most = sample_size(domain)
    fresh = encode_questions(grouped, encoder, settings, most)
    grown = updated(bank, fresh, settings, most)
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


def stray_questions(
    project: Project, router: Router, texts: Mapping[str, list[str]], most: int = 10
) -> list[tuple[str, str, str]]:
    """Name questions that look like another domain's: (domain, the other, question), `most` of a domain.

    Args:
        project: its files hold the texts, or the domains carry them; where neither is at hand, so is said.
        router: over its banks, or over others.
        texts: of those others, by domain.
        most: questions of a domain.
    """
    state = router.state
    if state.calibration is None or state.total is None:
        return []
    judged = judge(router.banks, state.total)
    scores = summed(judged.scores, state.calibration.weights)
    stray, found = strays(scores, judged.truth), []
    for place in torch.unique(judged.truth[stray]).tolist():
        name, rows = router.names[place], (stray & (judged.truth == place)).nonzero()[:most, 0]
        vectors = router.banks[place].sample.vectors[judged.places[rows]]
        known = _known(project, name, texts, router.encoder)
        for other, vector in zip(scores[rows].argmax(1).tolist(), vectors, strict=True):
            said = known.nearest(vector, 1)[0][0] if known else "(its text is not in this project)"
            found.append((name, router.names[other], said))
    return found


def _known(
    project: Project, domain: str, texts: Mapping[str, list[str]], encoder: QueryEncoder
) -> Encoded | None:
    """Find a domain's questions with their texts."""
    carried = project.general if domain == GENERAL else project.domain(domain)
    if domain in texts:
        questions = texts[domain]
    elif (carried / QUESTIONS).is_file():
        return load_questions(carried)
    elif domain == GENERAL or domain in project.settings.domains:
        questions = list(read_grouped(questions_file(project, domain)))
    else:
        return None
    return Encoded(questions, cached(encoder, project).encode(questions), torch.empty(0))


def _build(project: Project, domain: str, target: Path, wanted: str, encoder: QueryEncoder) -> None:
    started, settings = time.monotonic(), project.settings.router
    grouped = read_grouped(questions_file(project, domain))
    encoded = encode_questions(grouped, encoder, settings, sample_size(domain))
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
    said = f"{len(bank.centres)} centres of {bank.count} questions, {len(bank.sample)} of them to judge it by"
    width = bank.encoder.width
    few = f"{said} (fewer questions than a vector's {width} numbers, which is fine)"
    return said if bank.count > width else few

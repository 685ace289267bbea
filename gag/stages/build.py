"""Run what is missing of a domain's stages and put the results together as a plug-in folder."""

import datetime
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gag.errors import ArtifactError
from gag.models.batching import free_memory
from gag.models.loading import load_backbone
from gag.project import distributed
from gag.project.artifacts import SCHEMA, is_current, locked, read_manifest, writing
from gag.project.domain import (
    BANK,
    CARD,
    DOMAIN,
    EXPERT,
    PROJECTOR,
    QUESTIONS,
    SOURCES,
    STATISTICS,
    BankFacts,
    DomainFacts,
    ModelFacts,
    ScoreFacts,
    TransferFacts,
    load_domain,
)
from gag.project.inputs import DomainInputs, check
from gag.project.keys import stage_key
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import digest, read_rows, write_rows
from gag.project.settings import GENERAL
from gag.project.tensors import load_tensors, save_tensors
from gag.routing.encoders import cached
from gag.routing.query_encoder import QueryEncoder
from gag.routing.state import load_router, project_encoder
from gag.stages import adapt, align, prototypes, readouts
from gag.stages.align import try_alignment
from gag.stages.card import card
from gag.stages.transfer import transfer
from gag.training.tracking import one_run

STAGES: dict[str, Callable[[Project, str], Path]] = {
    "adapt": adapt.adapt,
    "readouts": readouts.readouts,
    "align": align.align,
    "prototypes": prototypes.prototypes,
}


def build(project: Project, domains: list[str]) -> dict[str, float]:
    """Build domains, and the general bank, and let the router decide for the set that is then here.

    Returns:
        The seconds of each stage.

    Raises:
        DataError, SettingsError: a row or a file is wrong; it shows before anything heavy runs.
    """
    seconds: dict[str, float] = {}
    check(project.settings, project.root, [project.inputs(domain) for domain in domains])

    @cache
    def encoder() -> QueryEncoder:
        return cached(project_encoder(project), project)

    with locked(project.root / "runs"), one_run(f"build {', '.join(domains)}"[:100]):
        _try_base(project, domains)
        for name in (GENERAL, *domains):  # together, so that the encoder is loaded once
            with _timed(seconds, f"prototypes {name}"):
                prototypes.prototypes(project, name, encoder)
        encoder.cache_clear()
        for domain in domains:
            for name in ("adapt", "readouts", "align"):
                with _timed(seconds, f"{name} {domain}"):
                    STAGES[name](project, domain)
            with _timed(seconds, f"transfer {domain}"):
                arrived = transfer(project, domain)
            inputs = project.inputs(domain)
            carries = project.described(domain).sources
            carried = digest(inputs.corpus) if inputs.corpus and carries else None
            wanted = stage_key(align=align.key(inputs), bank=prototypes.key(project, domain), sources=carried)
            if distributed.rank() == 0:
                bank = prototypes.folder(project, domain)
                _assemble(inputs, wanted, project.domain(domain), bank, arrived, carried is not None)
            distributed.barrier()
        if distributed.rank() == 0:
            with _timed(seconds, "router"):
                load_router(project)
    return seconds


def _try_base(project: Project, domains: list[str]) -> None:
    """Load the base, which tries all that alignment will ask of it, before hours of tuning for it."""
    if not all(_is_aligned(project.inputs(domain)) for domain in domains):
        try_alignment(load_backbone(project.settings.base, project.root))
        free_memory()


def _is_aligned(inputs: DomainInputs) -> bool:
    try:
        return is_current(inputs.run("align"), align.key(inputs))
    except ArtifactError:  # of a stage before it
        return False


def _assemble(
    inputs: DomainInputs,
    wanted: str,
    folder: Path,
    bank_folder: Path,
    arrived: TransferFacts,
    sources: bool,
) -> None:
    """Put expert, projector, bank, description and card into the plug-in folder."""
    name = inputs.name
    if is_current(folder, wanted, DOMAIN):
        say(f"build {name}: already there")
        return
    if _was_added_to(folder):
        say(
            f"build {name}: what `gag prototypes {name} --add` added to its bank is gone; add those "
            "files again"
        )
    aligned = read_manifest(inputs.run("align"))
    settings = inputs.settings
    facts = DomainFacts(
        schema_version=SCHEMA,
        key=wanted,
        name=name,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        base=ModelFacts(**aligned["base"]),
        expert=ModelFacts(**aligned["expert"]),
        tuning=settings.adapt.tuning,
        projector=settings.align.projector,
        readout=settings.readout,
        common=inputs.common,
        prompts=inputs.prompts,
        bank=BankFacts(**read_manifest(bank_folder)["bank"]),
        data=inputs.digests(),
        scores=ScoreFacts(val_loss=aligned["val_loss"], transfer=arrived),
    )
    described = facts.model_dump(mode="json", exclude={"schema_version"})
    with writing(folder, described, DOMAIN) as temporary:
        shutil.copytree(inputs.run("adapt") / EXPERT, temporary / EXPERT)
        trained = load_tensors(inputs.run("align") / PROJECTOR)
        half = getattr(torch, aligned["precision"])  # stored in the precision of the base it speaks to
        save_tensors(temporary / PROJECTOR, {n: tensor.to(half) for n, tensor in trained.items()})
        for file in (BANK, STATISTICS, QUESTIONS):
            if (bank_folder / file).is_file():
                shutil.copy(bank_folder / file, temporary)
        if sources and inputs.corpus:
            write_rows(temporary / SOURCES, list(_sources(inputs.corpus)))
        (temporary / CARD).write_text(card(facts), encoding="utf-8")
    say(f"build {name}: domains/{name} is ready")


def _sources(corpus: Path) -> Iterator[dict[str, Any]]:
    """Yield the passages of a corpus with their origin."""
    for line, row in read_rows(corpus):
        id = str(row.get("id", line))
        document = str(row.get("document") or row.get("source") or id)
        yield {
            "id": id, "document": document, "title": str(row.get("title") or document),
            "section": str(row.get("section") or ""), "pages": list(row.get("pages") or ()),
            "text": row["text"],
        }  # fmt: skip


def _was_added_to(folder: Path) -> bool:
    try:
        return bool(load_domain(folder, only=()).facts.bank.added)
    except ArtifactError:
        return False


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 2)

"""Stage I: teach a domain's expert its knowledge.

Where the domain has a corpus, the expert first reads it (packed documents, the best checkpoint on held-out
ones). Then it is tuned on question-answer rows, with the loss on answers only. Cross-fitting tunes one more
expert per fold, without the fold's rows. Each of these goes on from its newest complete checkpoint. Rows that
validate the projector teach no expert, where one file serves both stages.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gag.errors import ArtifactError, DataError
from gag.models.experts import Experts
from gag.models.loading import load_backbone, load_tokenizer
from gag.models.prompts import Prompts
from gag.planning.limits import check_limits
from gag.project import distributed
from gag.project.artifacts import is_current, read_manifest, writing
from gag.project.domain import write_known
from gag.project.hyperparameters import AdaptSettings
from gag.project.inputs import DomainInputs
from gag.project.keys import stage_key
from gag.project.memory import peak_bytes
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import Example, Passage, digest, fold_of, split_passages
from gag.project.run import Run, is_done
from gag.project.settings import ModelSettings
from gag.training.checkpoint import ADAPTER_CONFIG, check_source, take_adapter, take_weights, weights_name
from gag.training.report import curves, write_report
from gag.training.sft import Tuning, tune
from gag.training.tracking import tracker

CUT_SHARE = 0.01  # of the answers may be longer than adapt.max_tokens
Rows = list[dict[str, list[int]]]


def made_from(inputs: DomainInputs) -> dict[str, Any]:
    """Name what the expert is made from."""
    settings = inputs.settings
    return {
        "rows": inputs.taught_key,
        "settings": settings.adapt.key(),
        "expert": inputs.expert_key,
        "prompt": inputs.prompts.expert,
        "corpus": {"data": digest(inputs.corpus), **settings.pretrain.key()} if inputs.corpus else None,
        "folds": settings.readout.folds,
    }


def key(inputs: DomainInputs) -> str:
    """Name the expert by what it is made from."""
    return stage_key(**made_from(inputs))


def folds(inputs: DomainInputs) -> range:
    """Return the folds of cross-fitting, none if it is off."""
    count = inputs.settings.readout.folds
    return range(count if count > 1 else 0)


def adapt(project: Project, domain: str) -> Path:
    """Tune the expert of a domain; return the folder with the adapter or the full weights.

    Raises:
        DataError: too few rows, or too many answers longer than `adapt.max_tokens`.
        MismatchError: an unfinished run of other inputs stands there, or the readout does not suit the
            models.
    """
    inputs = project.inputs(domain)
    folder, unfinished, wanted = inputs.run("adapt"), inputs.run("adapt.unfinished"), made_from(inputs)
    if is_done(folder, stage_key(**wanted), unfinished):
        say(f"adapt {domain}: already there")
        return folder
    started = time.monotonic()
    tunings = list(_tunings(inputs))
    run = Run(unfinished, wanted, tracker(inputs.settings.tracking, domain, "adapt", project.root / "runs"))
    start = None
    for tuning in tunings:
        tuned = tune(inputs.settings.expert, inputs.root, run, tuning, start)
        start = tuned if tuning.name == "corpus" else start
    facts = {
        "key": stage_key(**wanted),
        "rows": len(inputs.taught),
        "settings": inputs.settings.adapt.model_dump(),
        "seconds": round(time.monotonic() - started, 1),
        "peak_bytes": peak_bytes(),
    }
    if distributed.rank() == 0:
        _keep(inputs, run, facts)
    run.close()
    say(f"adapt {domain}: {len(inputs.taught)} rows, {facts['seconds']:.0f} s")
    return folder


def adopt(project: Project, domain: str, source: Path) -> Path:
    """Take a checkpoint that was tuned elsewhere as if `adapt` had tuned it; return the stage's folder.

    Raises:
        ArtifactError: it is no whole checkpoint in safetensors, or later results stand, of the expert of
            before.
        MismatchError: it was tuned from another model than the project's expert.
        SettingsError: cross-fitting is on, which needs more than one expert.
    """
    inputs = project.inputs(domain)
    folder, wanted = inputs.run("adapt"), key(inputs)
    adapter = check_source(source, inputs.settings.adapt.tuning, inputs.settings.readout.folds)
    if distributed.broadcast(lambda: _is_taken(folder, wanted, source)):
        say(f"adapt {domain}: already there")
        return folder
    later = [inputs.run("readouts"), inputs.run("align"), project.domain(domain)]
    if standing := [str(path.relative_to(project.root)) for path in later if path.exists()]:
        raise ArtifactError(
            f"{', '.join(standing)}: made from another expert of {domain}; remove them, then run this again"
        )
    if distributed.rank() == 0:
        facts = {"key": wanted, "from": source.resolve().name, "weights": weights_name(source)}
        facts |= {"rows": 0, "seconds": 0}
        with writing(folder, facts) as temporary:
            check_limits(inputs)
            take_expert(inputs.settings.expert, inputs.root, source, temporary / "expert", domain)
    distributed.barrier()
    say(f"adapt {domain}: took {'the adapter' if adapter else 'the weights'} of {source.resolve().name}")
    return folder


def take_expert(settings: ModelSettings, root: Path, source: Path, expert: Path, domain: str) -> None:
    """Copy what an expert needs of a checkpoint to a new folder, and note what it answers.

    Raises:
        ArtifactError, MismatchError: it is not whole, or was tuned from another model.
    """
    backbone = load_backbone(settings, root)
    expert.mkdir()
    adapter = (source / ADAPTER_CONFIG).is_file()
    (take_adapter if adapter else take_weights)(source, expert, backbone)
    _note_answer(settings, root, domain, expert)


def _is_taken(folder: Path, wanted: str, source: Path) -> bool:
    """Say whether the domain's expert already has the weights of a checkpoint."""
    return is_current(folder, wanted) and read_manifest(folder).get("weights") == weights_name(source)


def _tunings(inputs: DomainInputs) -> Iterator[Tuning]:
    """Describe the tunings: the corpus if there is one, the expert, and an expert of each fold."""
    prompts = Prompts(load_tokenizer(inputs.settings.expert, inputs.root))
    check_limits(inputs)
    settings, label = inputs.settings.adapt, f"adapt {inputs.name}"
    rows = tokenise(prompts, inputs.taught, inputs.prompts.expert, settings.max_tokens)
    if inputs.passages:
        yield _corpus(inputs, prompts)
    yield Tuning("expert", label, settings, rows)
    count = inputs.settings.readout.folds
    for fold in folds(inputs):
        pairs = zip(rows, inputs.taught, strict=True)
        others = [row for row, example in pairs if fold_of(example, count) != fold]
        yield Tuning(f"fold-{fold}", f"{label}, fold {fold}", settings, others)


def _keep(inputs: DomainInputs, run: Run, facts: dict[str, Any]) -> None:
    """Copy what was tuned, its logs and a report into the stage's folder."""
    with writing(inputs.run("adapt"), facts) as temporary:
        for path in [run.folder / "expert", *run.folder.glob("fold-?"), *run.folder.glob("fold-??")]:
            shutil.copytree(path, temporary / path.name, ignore=shutil.ignore_patterns("manifest.json", ".*"))
        _note_answer(inputs.settings.expert, inputs.root, inputs.name, temporary / "expert")
        logs = sorted(run.folder.glob("*.log.jsonl"))
        for log in logs:
            shutil.copy(log, temporary)
        lines = [
            curve
            for log in logs
            for curve in curves(log, ("loss", "eval_loss"), f"{log.name.partition('.')[0]} ")
        ]
        told = {**facts, "pretrain": inputs.settings.pretrain.model_dump()}
        write_report(temporary, f"adapt {inputs.name}", told, lines)


def _note_answer(settings: ModelSettings, root: Path, domain: str, folder: Path) -> None:
    """Write beside an expert's weights what tells it from another one."""
    experts = Experts(load_backbone(settings, root))
    experts.load(domain, folder)
    with experts.using(domain) as expert:
        write_known(folder, expert.known_answer())


def tokenise(prompts: Prompts, examples: list[Example], system: str, max_tokens: int) -> Rows:
    """Encode rows with labels on the answer only.

    An answer over the limit is cut, and too many cut ones refused.
    """
    rows, cut = [], []
    for example in examples:
        prompt = prompts.ask_expert(example.question, system)
        answer = prompts.answer(example.answers[0])
        if len(prompt) >= max_tokens:
            raise DataError(
                f"the question of row {example.id} fills adapt.max_tokens={max_tokens}; raise it or "
                "shorten the row"
            )
        if len(prompt) + len(answer) > max_tokens:
            cut.append(example.id)
            answer = answer[: max_tokens - len(prompt)]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    if len(cut) > CUT_SHARE * len(examples):
        raise DataError(
            f"adapt.max_tokens={max_tokens} cuts {len(cut)} of {len(examples)} answers (first: "
            f"{', '.join(cut[:3])}); raise it, or shorten the rows"
        )
    if cut:
        say(f"  {len(cut)} answers are cut at adapt.max_tokens={max_tokens}: {', '.join(cut[:3])}")
    return rows


def _corpus(inputs: DomainInputs, prompts: Prompts) -> Tuning:
    """Describe the expert's reading of the domain's documents."""
    settings, adapt = inputs.settings.pretrain, inputs.settings.adapt
    train, val = split_passages(inputs.passages or [], settings.val_share, adapt.seed)
    if not train or not val:
        raise DataError(
            f"the corpus of {inputs.name} is too small to hold out documents; add some, or raise "
            "pretrain.val_share"
        )
    schedule = settings.model_dump(exclude={"block_tokens", "val_share"})
    pieces = [_pieces(prompts, passages, settings.block_tokens) for passages in (train, val)]
    return Tuning(
        "corpus",
        f"adapt {inputs.name}, corpus",
        AdaptSettings(**adapt.model_dump() | schedule),
        pieces[0],
        pieces[1],
        settings.block_tokens,
    )


def _pieces(prompts: Prompts, passages: list[Passage], block: int) -> Rows:
    """Encode documents, each with an end token.

    One that is longer than a block is cut into several pieces.
    """
    ids = [[*prompts.text(passage.text), prompts.end] for passage in passages]
    return [
        {"input_ids": document[i : i + block]} for document in ids for i in range(0, len(document), block)
    ]

"""Stage I: teach a domain's expert its knowledge.

Where the domain has a corpus, the expert first reads it (packed documents, the best checkpoint on held-out ones). Then
it is tuned on question-answer rows, with the loss on answers only. Cross-fitting tunes one more expert per fold,
without the fold's rows. Each of these goes on from its newest complete checkpoint.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from gag.errors import DataError
from gag.models.backbone import Backbone, load_backbone
from gag.project import distributed
from gag.project.artifacts import writing
from gag.project.inputs import adapt_file, corpus_file
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import Example, Passage, digest, fold_of, read_examples, read_passages, split_passages
from gag.project.run import Run, is_done, model_key, stage_key
from gag.project.settings import AdaptSettings
from gag.readout.states import check_layers
from gag.readout.vocabulary import base_tokens, check_shared
from gag.training.report import curves, write_report
from gag.training.sft import Tuning, tune

CUT_SHARE = 0.01
Rows = list[dict[str, list[int]]]


def inputs(project: Project, domain: str) -> dict[str, Any]:
    """Name what the expert is made from."""
    corpus = corpus_file(project, domain)
    return {
        "data": digest(adapt_file(project, domain)),
        "settings": project.settings.adapt.model_dump(exclude={"checkpoint_steps"}),
        "expert": model_key(project.settings.expert, project.root),
        "prompt": project.described(domain).prompts.expert,
        "corpus": {"data": digest(corpus), **project.settings.corpus.model_dump()} if corpus else None,
        "folds": project.settings.readout.folds,
    }


def key(project: Project, domain: str) -> str:
    """Name the expert by what it is made from."""
    return stage_key(**inputs(project, domain))


def folds(project: Project) -> range:
    """Return the folds of cross-fitting, none if it is off."""
    count = project.settings.readout.folds
    return range(count if count > 1 else 0)


def adapt(project: Project, domain: str) -> Path:
    """Tune the expert of a domain; return the folder with the adapter or the full weights."""
    folder, unfinished = project.run(domain, "adapt"), project.run(domain, "adapt.unfinished")
    settings, wanted = project.settings.adapt, inputs(project, domain)
    if is_done(folder, stage_key(**wanted), unfinished):
        say(f"adapt {domain}: already there")
        return folder
    started = time.monotonic()
    examples = read_examples(adapt_file(project, domain))
    rows, corpus = _encode(project, domain, examples)
    run = Run(unfinished, wanted, project.settings.tracking)
    start = tune(project, run, corpus) if corpus else None
    tune(project, run, Tuning("expert", f"adapt {domain}", settings, rows, start=start))
    for fold in folds(project):
        others = [
            row
            for row, e in zip(rows, examples, strict=True)
            if fold_of(e, project.settings.readout.folds) != fold
        ]
        tune(
            project,
            run,
            Tuning(f"fold-{fold}", f"adapt {domain}, fold {fold}", settings, others, start=start),
        )
    seconds = round(time.monotonic() - started, 1)
    if distributed.rank() == 0:
        facts = {
            "key": stage_key(**wanted),
            "rows": len(rows),
            "settings": settings.model_dump(),
            "seconds": seconds,
        }
        with writing(folder, facts) as temporary:
            for path in [run.folder / "expert", *run.folder.glob("fold-?"), *run.folder.glob("fold-??")]:
                shutil.copytree(path, temporary / path.name, ignore=shutil.ignore_patterns("manifest.json"))
            logs = sorted(run.folder.glob("*.log.jsonl"))
            for log in logs:
                shutil.copy(log, temporary)
            lines = [
                c
                for log in logs
                for c in curves(log, ("loss", "eval_loss"), f"{log.name.partition('.')[0]} ")
            ]
            write_report(
                temporary, f"adapt {domain}", {**facts, "corpus": project.settings.corpus.model_dump()}, lines
            )
    run.close()
    say(f"adapt {domain}: {len(rows)} rows, {seconds:.0f} s")
    return folder


def _encode(project: Project, domain: str, examples: list[Example]) -> tuple[Rows, Tuning | None]:
    """Encode the rows and the corpus; the backbone that knows how is gone before tuning loads its own."""
    backbone = load_backbone(project.settings.expert, project.root)
    check_readable(project, backbone)
    prompt = project.described(domain).prompts.expert
    return tokenise(backbone, examples, prompt, project.settings.adapt.max_tokens), _corpus(
        project, domain, backbone
    )


def check_readable(project: Project, backbone: Backbone) -> None:
    """Refuse, before hours of tuning, a readout that this expert or this base does not allow."""
    check_layers(backbone, project.settings.readout.layers)
    if project.settings.readout.space == "vocabulary":
        check_shared(backbone, base_tokens(project.settings.base, project.root))


def tokenise(backbone: Backbone, examples: list[Example], system: str, max_tokens: int) -> Rows:
    """Encode rows with labels on the answer only; an answer over the limit is cut, and too many cut answers refused."""
    rows, cut = [], []
    for example in examples:
        prompt = backbone.prompts.ask_expert(example.question, system)
        answer = backbone.prompts.answer(example.answers[0])
        if len(prompt) >= max_tokens:
            raise DataError(
                f"the question of row {example.id} fills adapt.max_tokens={max_tokens}; raise it or shorten the row"
            )
        if len(prompt) + len(answer) > max_tokens:
            cut.append(example.id)
            answer = answer[: max_tokens - len(prompt)]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    if len(cut) > CUT_SHARE * len(examples):
        raise DataError(
            f"adapt.max_tokens={max_tokens} cuts {len(cut)} of {len(examples)} answers (first: {', '.join(cut[:3])}); "
            "raise it, or shorten the rows"
        )
    if cut:
        say(f"  {len(cut)} answers are cut at adapt.max_tokens={max_tokens}: {', '.join(cut[:3])}")
    return rows


def _corpus(project: Project, domain: str, backbone: Backbone) -> Tuning | None:
    """Describe the expert's reading of the domain's corpus, if there is one."""
    path, settings = corpus_file(project, domain), project.settings.corpus
    if path is None:
        return None
    train, val = split_passages(read_passages(path), settings.val_share, project.settings.adapt.seed)
    if not train or not val:
        raise DataError(
            f"the corpus of {domain} is too small to hold out documents; add some, or raise corpus.val_share"
        )
    schedule = AdaptSettings(
        **project.settings.adapt.model_dump() | settings.model_dump(exclude={"block_tokens", "val_share"})
    )
    pieces = [_pieces(backbone, passages, settings.block_tokens) for passages in (train, val)]
    return Tuning("corpus", f"adapt {domain}, corpus", schedule, pieces[0], pieces[1], settings.block_tokens)


def _pieces(backbone: Backbone, passages: list[Passage], block: int) -> Rows:
    """Encode documents, each with an end token; one that is longer than a block is cut into several pieces."""
    ids = [backbone.prompts.answer(passage.text) for passage in passages]
    return [
        {"input_ids": document[i : i + block]} for document in ids for i in range(0, len(document), block)
    ]

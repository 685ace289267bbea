"""The stages that train nothing, planned: readouts, the router's prototypes, and the questions of users."""

import math

import torch

from gag.models.batching import length_batches
from gag.models.reading import CHUNK, read_states
from gag.planning.metering import dry_run
from gag.planning.passes import blank, forward, generate
from gag.planning.stages import Stage
from gag.planning.workload import Workload

SENTENCE = 20  # tokens of one, about


def readouts(work: Workload) -> Stage:
    """Plan the readouts: for each row the expert writes its budget, and one forward reads the states."""
    settings, requests = work.settings.readout, work.align.requests
    new = settings.max_new_tokens
    batches = length_batches([request + new for request in requests], tokens=settings.batch_tokens)
    heaviest = max(batches, key=lambda batch: len(batch) * (requests[batch[-1]] + new))
    rows, request = len(heaviest), requests[heaviest[-1]]
    expert = work.expert.shell(rank=work.rank)
    with dry_run(expert.model) as meter:
        weights, cache = meter.live, generate(expert, rows, request, new)
        read_states(expert, [[0] * request] * rows, [[0] * new] * rows, settings.layers)
    beside = work.expert_bytes * (work.folds + (work.rank is None)) + _vocabulary_bytes(work)
    tokens = 2 * sum(requests) + len(requests) * new  # a request is read twice, before and after the writing
    if settings.select == "salient":  # and each sentence once more, with the question behind it
        tokens += len(requests) * new + math.ceil(new / SENTENCE) * sum(requests)
    seconds = work.computing(tokens, meter.flops, rows * (2 * request + new))
    seconds += sum(work.decoding(work.expert, len(batch), new, cache) for batch in batches)
    return Stage(
        name="readouts",
        rows=len(requests),
        tokens=tokens,
        weights=weights + beside,
        peak=meter.peak + beside,
        seconds=seconds / work.machine.count,
        disk={"store": len(requests) * math.prod(work.slots) * work.expert.dtype.itemsize},
    )


def _vocabulary_bytes(work: Workload) -> int:
    """Return what the base's embeddings add where slots are made of them, and a chunk's distributions."""
    settings = work.settings.readout
    if settings.space != "vocabulary" and settings.select != "salient":
        return 0
    shared = settings.space == "vocabulary"
    embeddings = work.base.vocabulary * work.base.width * work.base.dtype.itemsize if shared else 0
    entry = 3 * torch.float32.itemsize  # a token's logit, its probability and its place in their order
    return embeddings + entry * CHUNK * work.expert.vocabulary


def prototypes(work: Workload) -> Stage:
    """Plan the router's bank: its encoder on the longest questions; a CPU keeps the bank's sums beside it."""
    settings, width = work.settings.router, work.expert.width
    lengths = sorted(min(tokens, settings.max_tokens) for tokens in work.questions)[-settings.max_questions :]
    rows, tokens = min(settings.batch_size, len(lengths)), sum(lengths)
    expert = work.expert.shell()
    with dry_run(expert.model) as meter, torch.no_grad():
        weights = meter.live
        forward(expert, blank(expert, rows, lengths[-1]))
    sums = 24 * width * len(lengths) + 16 * width**2 if work.machine.kind == "cpu" else 0
    return Stage(
        name="prototypes",
        rows=len(lengths),
        tokens=tokens,
        weights=weights,
        peak=max(meter.peak, weights + sums),
        seconds=work.computing(tokens, meter.flops, rows * lengths[-1]),
        disk={"bank": 4 * width * (settings.centres + 1) + 2 * width * (width + 1)},
    )


def ask(work: Workload) -> Stage:
    """Plan the finished engine with all domains, on its largest batch of the longest questions."""
    readout, decoding = work.settings.readout, work.settings.decoding
    request, new = max(work.align.requests), readout.max_new_tokens
    rows = min(decoding.batch_size, max(1, readout.batch_tokens // (request + new)))  # read at a time
    prompt = work.align.longest_before + readout.slots + work.align.after
    base, expert = work.base.shell(), work.expert.shell(rank=work.rank)
    with dry_run(base.model, expert.model) as meter:
        weights, read_cache = meter.live, generate(expert, rows, request, new)
        read_states(expert, [[0] * request] * rows, [[0] * new] * rows, readout.layers)
        answer_cache = generate(base, decoding.batch_size, prompt, decoding.max_new_tokens)
    beside = _domains_bytes(work)
    answering = work.decoding(work.base, decoding.batch_size, decoding.max_new_tokens, answer_cache)
    reading = math.ceil(decoding.batch_size / rows) * work.decoding(work.expert, rows, new, read_cache)
    return Stage(
        name="ask",
        rows=decoding.batch_size,
        tokens=decoding.batch_size * (request + new + prompt + decoding.max_new_tokens),
        weights=weights + beside,
        peak=meter.peak + beside,
        seconds=meter.flops / work.machine.rate + answering + reading,
        disk={},
    )


def _domains_bytes(work: Workload) -> int:
    """Return the bytes of all domains' experts and projectors, beside an adapter that the dry run has."""
    projector = sum(p.numel() for p in work.projector().parameters()) * work.base.dtype.itemsize
    counted = work.expert_bytes if work.rank else 0
    return work.domains * (work.expert_bytes + projector) - counted

"""Before any weights are there: does a run fit, how long does it take, how large is what it writes.

Models are built from their configs without storage, and each stage's heaviest batch runs dry on them, on tensors that
have shapes and no values. A meter counts the bytes that live at a time, and the floating-point operations.
"""

import copy
import json
import math
import textwrap
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gag.errors import SettingsError
from gag.models.backbone import Backbone
from gag.models.prompts import Prompts
from gag.planning.machine import Machine, machine
from gag.planning.metering import dry_run
from gag.project.inputs import adapt_file, alignment_rows, corpus_file, questions_file
from gag.project.project import Project
from gag.project.rows import read_examples, read_passages, read_questions
from gag.project.settings import ModelSettings
from gag.projection.losses import SemanticHead, label_loss
from gag.projection.projector import make_projector
from gag.readout.states import check_layers, read_states, token_batches
from gag.readout.vocabulary import CHUNK

WIDTH = 110
LAYER_SECONDS = 7e-4  # a layer's least on a GPU for a decoded token
RUNTIME = {"cuda": 800_000_000, "cpu": 50_000_000}  # bytes that the device's own libraries take at first use
TILE, CPU_TILES = (
    (4096, 32_768),
    8.25,
)  # tokens x vocabulary whose logits TRL holds; a CPU holds so many copies of them


@dataclass(frozen=True)
class ModelSize:
    """A model as its config makes it."""

    model: str
    parameters: int
    tied: bool
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Stage:
    """A stage: its heaviest moment on one device, its seconds, and the bytes that it writes."""

    name: str
    rows: int
    tokens: int
    weights: int
    peak: int
    seconds: float
    disk: dict[str, int]
    cure: str | None = None  # of a stage that does not fit


@dataclass(frozen=True)
class Plan:
    """A whole run: sizes in bytes, times in seconds."""

    domain: str
    machine: Machine
    models: dict[str, ModelSize]
    stages: list[Stage]
    fits: bool
    verdict: str

    def lines(self) -> list[str]:
        """Return the plan as a table for a terminal, and the verdict."""
        title = f"{self.domain} on {self.machine.count} x {_gb(self.machine.memory)}; {self.machine.assumed}"
        models = [
            f"{role:<10} {_short(m.parameters)} parameters{', embeddings tied' if m.tied else ''}, {m.dtype}, {_gb(m.bytes)}"
            for role, m in self.models.items()
        ]
        head = (
            f"{'stage':<10} {'rows':>7} {'tokens':>8} {'weights':>9} {'peak':>9} {'time':>8} {'on disk':>9}"
        )
        rows = [
            f"{s.name:<10} {s.rows:>7} {_short(s.tokens):>8} {_gb(s.weights):>9} {_gb(s.peak):>9} {_time(s.seconds):>8} "
            f"{_gb(sum(s.disk.values())):>9}  {'does not fit' if s.cure else 'fits'}"
            for s in self.stages
        ]
        return [
            *textwrap.wrap(title, WIDTH),
            *models,
            "",
            head,
            *rows,
            "",
            *textwrap.wrap(self.verdict, WIDTH),
        ]


class _Source:
    """A model's config and tokenizer, and how it is loaded on a kind of device."""

    def __init__(self, settings: ModelSettings, root: Path, kind: str):
        name = str(root / settings.model) if (root / settings.model).is_dir() else settings.model
        known: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": False}
        try:
            self._config: Any = AutoConfig.from_pretrained(name, **known)
            self._tokenizer = AutoTokenizer.from_pretrained(name, **known)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SettingsError(
                f"{settings.model} cannot be planned: {reason}; name a model's folder or id"
            ) from error
        self._settings, self.prompts = settings, Prompts(self._tokenizer)
        config = self._config.get_text_config()
        self.width, self.layers, self.vocabulary = (
            config.hidden_size,
            config.num_hidden_layers,
            config.vocab_size,
        )
        auto = (self._config.dtype or torch.float32) if kind == "cuda" else torch.float32
        self.dtype: torch.dtype = auto if settings.dtype == "auto" else getattr(torch, settings.dtype)

    @cached_property
    def size(self) -> ModelSize:
        model: Any = self.shell().model
        count, name = sum(p.numel() for p in model.parameters()), str(self.dtype).removeprefix("torch.")
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        return ModelSize(self._settings.model, count, tied, name, count * self.dtype.itemsize)

    def shell(self, dtype: torch.dtype | None = None, rank: int | None = None) -> Backbone:
        """Build the model without storage, with LoRA layers of a rank."""
        config, attention = (
            copy.deepcopy(self._config),
            "eager" if self._settings.attention == "eager" else "sdpa",
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype or self.dtype, attn_implementation=attention
            )
            model.eval().requires_grad_(False)
            if rank:
                from peft import LoraConfig, inject_adapter_in_model

                inject_adapter_in_model(
                    LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"), model
                )
        return Backbone(model, self._tokenizer, self._settings.model, self._settings.revision)


class _View:
    """What a stage is planned from: the machine, the models, the settings, and the lengths of rows in tokens."""

    def __init__(self, project: Project, domain: str, machine: Machine):
        words, corpus = project.described(domain).prompts, corpus_file(project, domain)
        self.machine, self.settings, splits = machine, project.settings, alignment_rows(project, domain)
        self.base, self.expert = (
            _Source(s, project.root, machine.kind) for s in (self.settings.base, self.settings.expert)
        )
        ours, theirs = self.base.prompts, self.expert.prompts
        align, adapt = [*splits["align"], *splits["val"]], read_examples(adapt_file(project, domain))
        self.train = len(splits["align"])
        self.prompt = ours.with_knowledge("?", words.answer)
        self.before = [len(ours.with_knowledge(e.question, words.answer).before) for e in align]
        self.answers = [len(ours.answer(e.answers[0])) for e in align]
        self.asks = [len(theirs.ask_expert(e.question, words.expert)) for e in align]
        self.taught = [len(theirs.answer(e.answers[0])) for e in adapt]
        self.adapt = [
            n + len(theirs.ask_expert(e.question, words.expert))
            for n, e in zip(self.taught, adapt, strict=True)
        ]
        self.corpus = sum(len(theirs.answer(p.text)) for p in read_passages(corpus)) if corpus else 0
        self.questions = [
            len(theirs.text(q)) for q in dict.fromkeys(read_questions(questions_file(project, domain)))
        ]
        self.domains = len({domain, *project.present()})
        self.slots = self.settings.readout.shape(self.expert.width, self.base.width)

    @property
    def rank(self) -> int | None:
        return self.settings.adapt.rank if self.settings.adapt.tuning == "lora" else None

    @property
    def folds(self) -> int:
        return self.settings.readout.folds if self.settings.readout.folds > 1 else 0

    @property
    def adapter(self) -> int:
        """Bytes of one domain's expert beside the backbone."""
        model = self.expert.shell(rank=self.rank).model
        return _trained(model) if self.rank else self.expert.size.bytes

    def modules(self, head: bool) -> torch.nn.ModuleList:
        """Make the projector, and the head of the semantic loss."""
        with torch.device("meta"):
            projector = make_projector(self.settings.align.projector, self.slots, self.base.width)
            return torch.nn.ModuleList(
                [projector, *([SemanticHead(self.base.width, self.expert.width)] if head else [])]
            )

    def micro(self, group: Any, rows: int) -> tuple[int, bool]:
        """Rows of a forward pass on one device, and whether gradients of earlier passes are there."""
        share = max(1, min(group.batch_size, rows) // self.machine.count)
        return min(group.micro_batch_size, share), share > group.micro_batch_size

    def decoding(self, model: _Source, rows: int, tokens: int, cache: int) -> float:
        """Seconds of decoding: a token is bound by operations, by the bytes that it reads, or by a GPU's launches."""
        launches = LAYER_SECONDS * model.layers if self.machine.kind == "cuda" else 0
        reading = (model.size.bytes + cache / 2) / self.machine.bandwidth
        return tokens * max(2 * model.size.parameters * rows / self.machine.rate, reading, launches)

    def under(self, changes: dict[str, Any]) -> "_View":
        """Return the same under other settings, named as on the command line."""
        view = copy.copy(self)
        for (group, name), value in ((key.split("."), value) for key, value in changes.items()):
            changed = getattr(view.settings, group).model_copy(update={name: value})
            view.settings = view.settings.model_copy(update={group: changed})
        return view


def _tune(view: _View, corpus: bool = False) -> Stage:
    """Stage I, or its reading of the corpus: TRL's training step on the longest rows."""
    adapt, expert, cuda = view.settings.adapt, view.expert, view.machine.kind == "cuda"
    group, block = (view.settings.corpus if corpus else adapt), view.settings.corpus.block_tokens
    lengths = (
        [block] * math.ceil(view.corpus / block) if corpus else [min(n, adapt.max_tokens) for n in view.adapt]
    )
    micro, summed = view.micro(group, len(lengths))
    shape = (1, micro * block) if corpus else (micro, max(lengths))
    model: Any = expert.shell(None if view.rank else torch.float32, view.rank).model.train()
    model.enable_input_require_grads() if view.rank else model.requires_grad_(True)
    if adapt.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "preserve_rng_state": False})
    tokens = micro * max(view.taught) if cuda and not corpus else math.prod(shape)  # that the head sees
    tile = min(tokens, TILE[0]) * (TILE[1] * 2 if cuda else min(TILE[1], expert.vocabulary) * 4 * CPU_TILES)
    head = round(tile) + 4 * expert.width * (tokens + (0 if view.rank else expert.vocabulary))
    with dry_run(model) as meter:
        weights, trained = meter.live, _trained(model, summed)
        with torch.autocast("cpu", torch.bfloat16, enabled=cuda):
            ids, mask = (
                torch.zeros(shape, dtype=torch.long),
                torch.ones(shape[0], 1, shape[1], shape[1], dtype=torch.bool),
            )
            states = model.get_decoder()(
                input_ids=ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
            meter.peak = max(meter.peak, meter.live + head)
        states.backward(torch.empty_like(states))
    peak = meter.peak + trained * (2 if view.machine.count == 1 else 3)  # Adam's moments; an exchange
    read = round(sum(lengths) * group.epochs * (1 if corpus or not view.folds else view.folds))
    seconds = read * meter.flops / math.prod(shape) / view.machine.rate / view.machine.count
    disk = {"checkpoints": 3 * 3 * trained} | ({} if corpus else {"experts": view.adapter * (1 + view.folds)})
    return Stage("corpus" if corpus else "adapt", len(lengths), read, weights, peak, seconds, disk)


def _trained(model: torch.nn.Module, summed: bool = False) -> int:
    """Return the bytes of what is trained; give it gradients, if they are summed over several passes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained if summed else ():
        parameter.grad = torch.empty_like(parameter)
    return sum(p.nbytes for p in trained)


def _readouts(view: _View) -> Stage:
    """Between the stages, the heaviest batch: the expert writes its whole budget, and one forward reads the states."""
    group, new = view.settings.readout, view.settings.readout.max_new_tokens
    batches = token_batches([ask + new for ask in view.asks], group.batch_tokens)
    heavy = max(batches, key=lambda batch: len(batch) * (view.asks[batch[-1]] + new))
    expert, count, prompt = view.expert.shell(rank=view.rank), len(heavy), view.asks[heavy[-1]]
    check_layers(expert, group.layers)
    with dry_run(expert.model) as meter:
        weights, cache = meter.live, _generate(expert, count, prompt, new)
        read_states(expert, [[0] * prompt] * count, [[0] * new] * count, group.layers)
    state, rows = math.prod(view.slots) * view.expert.dtype.itemsize, len(view.asks)
    more, read = view.adapter * (view.folds + (view.rank is None)), 2 * sum(view.asks) + rows * new
    if group.space == "vocabulary":  # the base's embeddings; a chunk's logits, probabilities and order
        more += (
            view.base.vocabulary * view.base.width * view.base.dtype.itemsize
            + 12 * CHUNK * view.expert.vocabulary
        )
    seconds = read * meter.flops / (count * (2 * prompt + new)) / view.machine.rate
    seconds += sum(view.decoding(view.expert, len(batch), new, cache) for batch in batches)
    disk, peak = {"store": rows * state}, meter.peak + more
    return Stage("readouts", rows, read, weights + more, peak, seconds / view.machine.count, disk)


def _forward(model: Any, rows: int, held: int, new: torch.Tensor | int, cache: Any = None) -> torch.Tensor:
    """Run new tokens (or their embeddings) of some rows through the decoder, after what a cache holds -> [B, T, D]."""
    width, known = (
        model.config.get_text_config().hidden_size,
        {"past_key_values": cache, "use_cache": cache is not None},
    )
    embeds = torch.empty(rows, new, width, dtype=model.dtype) if isinstance(new, int) else new
    mask, decoder = torch.ones(rows, held + embeds.shape[1], dtype=torch.long), model.get_decoder()
    return decoder(
        inputs_embeds=embeds, attention_mask=mask, position_ids=mask[:, held:], **known
    ).last_hidden_state


@torch.no_grad()
def _generate(expert: Backbone, rows: int, prompt: int, new: int) -> int:
    """Decode the first and the last of some new tokens; return the bytes of the cache."""
    cache: Any = DynamicCache(config=expert.model.config)
    for held, count in ((0, prompt), (prompt + new - 1, 1)) if new else ():
        for layer in cache.layers if held else ():
            layer.keys, layer.values = (
                x.new_empty(rows, x.shape[1], held, x.shape[3]) for x in (layer.keys, layer.values)
            )
        expert.logits(_forward(expert.model, rows, held, count, cache)[:, -1]).float()
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) if new else 0


def _align(view: _View) -> Stage:
    """Stage II: the projector's training step (gag.alignment) on the longest questions and answers."""
    group, readout, base = view.settings.align, view.settings.readout, view.base.shell()
    (micro, summed), before, answer = view.micro(group, view.train), max(view.before), max(view.answers)
    modules = view.modules(head=bool(group.semantic))
    after, read = len(view.prompt.after), before + readout.max_new_tokens + len(view.prompt.after) + answer
    with dry_run(base.model, modules) as meter:
        weights, trained = meter.live - _trained(modules), _trained(modules, summed)
        start = view.base.size.bytes + (
            view.expert.size.bytes if group.semantic else 0
        )  # it encodes the answers' meaning
        if view.machine.kind == "cpu" and group.start != "random":
            begin: Any = getattr(modules[0], f"start_from_{group.start}")
            begin(torch.empty(view.train, *view.slots), torch.empty(view.train, base.width))
            start, meter.peak = max(start, meter.peak), meter.live
        states = _answer(
            base, modules[0](torch.empty(micro, *view.slots)), view.prompt.shared, before, after + answer - 1
        )
        with torch.no_grad():
            taught = (
                _forward(base.model, micro, 0, read)[:, -answer:].flatten(0, 1) if group.distill else None
            )
        labels, states = torch.zeros(micro * answer, dtype=torch.long), states[:, -answer:]
        loss = label_loss(base, states.flatten(0, 1), labels, taught, group.distill)
        (loss + sum(head(states.float().mean(1)).sum() for head in modules[1:])).backward()
    steps, rows = group.steps or group.epochs * -(-view.train // group.batch_size), len(view.before)
    read = round(steps * group.batch_size * (sum(view.before) + sum(view.answers)) / rows)
    seconds = read * meter.flops / (micro * (before + answer)) / view.machine.rate / view.machine.count
    disk = {"projector": trained + trained // 4 * view.base.dtype.itemsize, "checkpoints": 2 * 4 * trained}
    return Stage("align", rows, read, weights, max(start, meter.peak + 2 * trained), seconds, disk)


def _answer(base: Backbone, vectors: torch.Tensor, shared: int, before: int, after: int) -> torch.Tensor:
    """Run the questions without gradient, and with it what stands from the vectors on: [B, S, Db] -> [B, T, Db]."""
    rows, cache = len(vectors), DynamicCache(config=base.model.config)
    with torch.no_grad():
        _forward(base.model, 1, 0, shared, cache)
        cache.batch_repeat_interleave(rows)
        _forward(base.model, rows, shared, before - shared, cache)
        tokens = torch.empty(rows, after, base.width, dtype=base.model.dtype)
    return _forward(base.model, rows, before, torch.cat([vectors.to(tokens), tokens], 1), cache)


def _prototypes(view: _View) -> Stage:
    """The router's encoder on the longest questions; on a CPU, the sums of the bank stand beside it."""
    router, width = view.settings.router, view.expert.width
    lengths, expert = (
        sorted(min(n, router.max_tokens) for n in view.questions)[-router.max_questions :],
        view.expert.shell(),
    )
    rows = min(router.batch_size, len(lengths))
    with dry_run(expert.model) as meter, torch.no_grad():
        weights = meter.live
        _forward(expert.model, rows, 0, lengths[-1])
    sums = 24 * width * len(lengths) + 16 * width**2 if view.machine.kind == "cpu" else 0
    seconds = sum(lengths) * meter.flops / (rows * lengths[-1]) / view.machine.rate
    disk = {"bank": 4 * width * (router.centres + 1) + 2 * width * (width + 1)}
    return Stage(
        "prototypes", len(lengths), sum(lengths), weights, max(meter.peak, weights + sums), seconds, disk
    )


def _ask(view: _View) -> Stage:
    """The finished engine with all domains, on its largest batch of the longest questions."""
    base, expert = view.base.shell(), view.expert.shell(rank=view.rank)
    readout, answer = view.settings.readout, view.settings.decoding
    ask, size, new = max(view.asks), answer.batch_size, readout.max_new_tokens
    rows = min(size, max(1, readout.batch_tokens // (ask + new)))
    prompt = max(view.before) + readout.slots + len(view.prompt.after)
    with dry_run(base.model, expert.model) as meter:
        weights, read = meter.live, _generate(expert, rows, ask, new)
        read_states(expert, [[0] * ask] * rows, [[0] * new] * rows, readout.layers)
        answered = _generate(base, size, prompt, answer.max_new_tokens)
    module = sum(p.numel() for p in view.modules(head=False).parameters()) * view.base.dtype.itemsize
    more = view.domains * (view.adapter + module) - (view.adapter if view.rank else 0)
    seconds = meter.flops / view.machine.rate + view.decoding(
        view.base, size, answer.max_new_tokens, answered
    )
    seconds += math.ceil(size / rows) * view.decoding(view.expert, rows, new, read)
    tokens = size * (ask + new + prompt + answer.max_new_tokens)
    return Stage("ask", size, tokens, weights + more, meter.peak + more, seconds, {})


STAGES = {
    "corpus": (partial(_tune, corpus=True), "corpus.micro_batch_size"),
    "adapt": (_tune, "adapt.micro_batch_size"),
    "readouts": (_readouts, "readout.batch_tokens"),
    "align": (_align, "align.micro_batch_size"),
    "prototypes": (_prototypes, "router.batch_size"),
    "ask": (_ask, "decoding.batch_size"),
}
_RECOMPUTE = {"adapt.gradient_checkpointing": True}
LADDER: list[dict[str, Any]] = [{}, _RECOMPUTE, _RECOMPUTE | {"adapt.tuning": "lora"}]


def plan(project: Project, domain: str, gpus: str | None = None) -> Plan:
    """Plan a domain's run on devices like "8x80GB", or on this machine, from configs, tokenizers and the domain's rows."""
    view = _View(project, domain, machine(gpus))
    stages = [_stage(view, name) for name in STAGES if name != "corpus" or view.corpus]
    seconds, disk = (
        sum(s.seconds for s in stages if s.name != "ask"),
        sum(sum(s.disk.values()) for s in stages),
    )
    good = f"Everything fits: about {_time(seconds)} in all, and up to {_gb(disk)} on disk."
    cures = [f"{s.name} needs {_gb(s.peak)} a device: {s.cure}." for s in stages if s.cure]
    sizes = {"base": view.base.size, "expert": view.expert.size}
    return Plan(domain, view.machine, sizes, stages, not cures, " ".join(cures) or good)


def _stage(view: _View, name: str) -> Stage:
    """Plan a stage. Where it does not fit, halve its batch until it does; then recompute activations; then tune an adapter."""
    (make, knob), runtime, least = STAGES[name], RUNTIME[view.machine.kind], []
    stage = make(view)
    stage, memory = replace(stage, peak=stage.peak + runtime), view.machine.memory - runtime
    if stage.peak <= view.machine.memory:
        return stage
    settings = [view.under(gentler).settings for gentler in LADDER]
    for gentler in (
        g
        for i, g in enumerate(LADDER)
        if settings[i] not in settings[:i] and (i == 0 or name in ("corpus", "adapt"))
    ):
        tries = [gentler | {knob: value} for value in _halves(view.settings, knob)]
        least.append(make(view.under(tries[-1])).peak + runtime)
        if least[-1] <= view.machine.memory:
            found = next(changes for changes in tries if make(view.under(changes)).peak <= memory)
            changed = {key: value for key, value in found.items() if value != _value(view.settings, key)}
            return replace(
                stage, cure="set " + ", ".join(f"{key}={json.dumps(value)}" for key, value in changed.items())
            )
    return replace(
        stage, cure=f"no setting is enough, use devices of {math.ceil(min(least) / 1e9)} GB or more"
    )


def _halves(settings: Any, knob: str) -> list[int]:
    """Return a setting's value and its halves; of a micro-batch, those that divide the batch."""
    value, whole = (
        _value(settings, knob),
        _value(settings, f"{knob.split('.')[0]}.batch_size") if "micro" in knob else 0,
    )
    return [n for n in (value >> i for i in range(value.bit_length())) if whole <= n or whole % n == 0]


def _value(settings: Any, key: str) -> Any:
    return reduce(getattr, key.split("."), settings)


def _unit(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """Write a value in the largest unit that it fills."""
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / size:.{0 if size == 1 else 1}f}{name}"


_short = partial(_unit, units=((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")))
_gb = partial(_unit, units=((1e9, " GB"), (1e6, " MB"), (1e3, " kB")))
_time = partial(_unit, units=((3600, " h"), (60, " min"), (1, " s")))

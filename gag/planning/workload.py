"""What every stage is planned from: the machine, the models, the settings, and the lengths of rows."""

from dataclasses import dataclass

import torch

from gag.models.prompts import Prompts
from gag.planning.machine import Machine
from gag.planning.models import Blueprint, trained_bytes
from gag.project.hyperparameters import AdaptSettings, AlignSettings, PretrainSettings
from gag.project.inputs import DomainInputs
from gag.project.project import Project
from gag.project.rows import Example, read_questions
from gag.project.settings import (
    ProjectSettings,
    PromptSettings,
)
from gag.projection.alignment import shared_opening
from gag.projection.projector import Projector, make_projector

LAYER_SECONDS = 7e-4  # the least that a layer takes on a GPU for a decoded token, to launch its kernels


@dataclass(frozen=True)
class AlignLengths:
    """Tokens of the alignment rows, training and validation; the lists have an entry for each row."""

    requests: list[int]  # that ask the expert
    befores: list[int]  # of the base's prompt, before the vectors
    answers: list[int]
    shared: int  # of each `before`: the opening that all rows share
    after: int  # of the base's prompt, after the vectors

    @property
    def longest_before(self) -> int:
        """Tokens of the longest prompt up to its vectors."""
        return max(self.befores)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer."""
        return max(self.answers)


@dataclass(frozen=True)
class AdaptLengths:
    """Tokens of the rows that teach the expert, an entry for each row."""

    rows: list[int]  # request and answer together
    answers: list[int]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of training on one device."""

    rows: int
    accumulates: bool  # gradients of earlier passes are there


@dataclass(frozen=True)
class Workload:
    """What a stage is planned from."""

    machine: Machine
    settings: ProjectSettings
    base: Blueprint
    expert: Blueprint
    align: AlignLengths
    align_rows: int  # that train the projector; the others validate it
    adapt: AdaptLengths
    corpus_tokens: int  # of all documents; 0 without a corpus
    questions: list[int]  # tokens of the questions that stand for the domain
    domains: int  # domains in the finished engine

    @property
    def slots(self) -> tuple[int, int, int]:
        """The shape of what is read from the expert for a question [S, L, De]."""
        return self.settings.readout.shape(self.expert.width, self.base.width)

    @property
    def rank(self) -> int | None:
        """The rank of the expert's LoRA layers; None where all weights are tuned."""
        return self.settings.adapt.rank if self.settings.adapt.tuning == "lora" else None

    @property
    def folds(self) -> int:
        """Experts beside the domain's own, for cross-fitting; 0 without it."""
        return self.settings.readout.folds if self.settings.readout.folds > 1 else 0

    @property
    def expert_bytes(self) -> int:
        """Bytes of a tuned expert: the adapter beside the backbone, or all weights."""
        model = self.expert.shell(rank=self.rank).model
        return trained_bytes(model) if self.rank else self.expert.size.bytes

    def projector(self) -> Projector:
        """Make the projector without storage, on PyTorch's meta device."""
        with torch.device("meta"):
            return make_projector(self.settings.align.projector, self.slots, self.base.width)

    def micro_batch(self, group: AdaptSettings | PretrainSettings, rows: int) -> MicroBatch:
        """Return a forward pass of tuning on so many rows, shared among the devices."""
        return self._micro_batch(group, rows, group.micro_batch_size)

    def align_micro_batch(self) -> MicroBatch:
        """Return a forward pass of alignment on its longest rows."""
        settings, lengths = self.settings, self.align
        inside = settings.readout.max_new_tokens if settings.align.distill else self.slots[0]
        longest = lengths.longest_before + inside + lengths.after + lengths.longest_answer
        most = max(1, settings.align.batch_tokens // longest)
        return self._micro_batch(settings.align, self.align_rows, most)

    def _micro_batch(
        self, group: AdaptSettings | PretrainSettings | AlignSettings, rows: int, most: int
    ) -> MicroBatch:
        share = max(1, min(group.batch_size, rows) // self.machine.count)
        return MicroBatch(min(most, share), share > most)

    def computing(self, tokens: int, flops: int, metered: int) -> float:
        """Return one device's seconds for tokens, from the operations of a dry run on `metered` tokens."""
        return tokens * flops / metered / self.machine.rate

    def decoding(self, model: Blueprint, rows: int, tokens: int, cache: int) -> float:
        """Return one device's seconds for decoding so many tokens of each row.

        A token is bound by its operations, by the bytes that it reads (the weights, and on average half of
        the final `cache`), or by a GPU's launches.
        """
        operations = 2 * model.size.parameters * rows / self.machine.rate
        reading = (model.size.bytes + cache / 2) / self.machine.bandwidth
        launches = LAYER_SECONDS * model.layers if self.machine.kind == "cuda" else 0
        return tokens * max(operations, reading, launches)


def read_workload(project: Project, domain: str, machine: Machine) -> Workload:
    """Read configs, tokenizers and the domain's rows, and no weights.

    Raises SettingsError or DataError where one of them is missing or faulty.
    """
    inputs, settings = project.inputs(domain), project.settings
    words, splits = inputs.prompts, inputs.splits
    base = Blueprint(settings.base, project.root, machine.kind)
    expert = Blueprint(settings.expert, project.root, machine.kind)
    questions = dict.fromkeys(read_questions(inputs.align))
    return Workload(
        machine=machine,
        settings=settings,
        base=base,
        expert=expert,
        align=align_lengths(inputs, base.prompts, expert.prompts),
        align_rows=len(splits.align),
        adapt=adapt_lengths(inputs.taught, expert.prompts, words),
        corpus_tokens=sum(len(expert.prompts.text(document.text)) + 1 for document in inputs.passages or []),
        questions=[len(expert.prompts.text(question)) for question in questions],
        domains=len({domain, *project.present()}),
    )


def align_lengths(inputs: DomainInputs, base: Prompts, expert: Prompts) -> AlignLengths:
    """Count the tokens of alignment's rows, under the base's and the expert's prompts.

    An answer that the base is to write itself counts with its whole budget.
    """
    rows, words = [*inputs.splits.align, *inputs.splits.val], inputs.prompts
    budget = inputs.settings.decoding.max_new_tokens
    prompts = [base.with_knowledge(row.question, words) for row in rows]
    befores = [prompt.before for prompt in prompts]
    return AlignLengths(
        requests=[len(expert.ask_expert(row.question, words.expert)) for row in rows],
        befores=[len(before) for before in befores],
        answers=[len(base.answer(row.answers[0])) if row.answers else budget for row in rows],
        shared=len(shared_opening(befores)),
        after=len(prompts[0].after),
    )


def adapt_lengths(rows: list[Example], expert: Prompts, words: PromptSettings) -> AdaptLengths:
    """Count the tokens of the rows that teach the expert, under its prompt."""
    answers = [len(expert.answer(row.answers[0])) for row in rows]
    requests = [len(expert.ask_expert(row.question, words.expert)) for row in rows]
    return AdaptLengths([a + r for a, r in zip(answers, requests, strict=True)], answers)

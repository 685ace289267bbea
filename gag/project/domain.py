"""The plug-in folder of a domain: expert, projector, bank, prompts and card, described by domain.json.

This file knows what lies where and whether it is whole; `projection`, `routing` and `models` load what is in
it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gag.errors import ArtifactError, MismatchError
from gag.project.artifacts import read_manifest, write_json
from gag.project.hyperparameters import ReadoutSettings
from gag.project.settings import PromptSettings

DOMAIN = "domain.json"
PROJECTOR = "projector.safetensors"
BANK, STATISTICS = "bank.safetensors", "bank-statistics.safetensors"  # what routes; what only re-calibrates
QUESTIONS = "questions.safetensors"  # only where a domain chose to carry its questions
CARD = "README.md"
SOURCES = "sources.jsonl"  # only where a domain chose to carry its passages: answers name them
EXPERT = "expert"
KNOWN = "known.json"  # beside an expert's weights: what it answers to `KNOWN_PROMPT`
ROUTING_PART = (BANK,)
FAITHFUL = 0.5  # of the knowledge must arrive
MANY_SLOTS = 16
MODULE_PART = (PROJECTOR, EXPERT, CARD)
KNOWN_PROMPT, KNOWN_TOKENS = "What is known of it, and since when?", 8  # a question, and its answer's length
NEAR = 0.25  # nats, which half precision may cost


Share = Annotated[float, Field(gt=0, le=1)]


class Facts(BaseModel):
    """The base of what a manifest records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KnownToken(Facts):
    """A greedy step of a model: what it said, how likely it found it, and how far ahead of the next."""

    id: int
    log_probability: float
    lead: float


class ModelFacts(Facts):
    """The model that a domain was built for.

    Where its weights are not at hand, only what it answers is: `fingerprint` is empty, and `known`, its
    greedy answer to `KNOWN_PROMPT`, tells it from another.
    """

    model: str
    revision: str | None
    fingerprint: str
    width: int
    known: tuple[KnownToken, ...]

    def check(self, role: str, present: "ModelFacts", domain: str) -> None:
        """Refuse a model other than the one that the domain was built for."""
        if present.width != self.width:
            raise MismatchError(
                f"{domain} was built for a {role} of width {self.width} ({self.model}), this project's has "
                f"{present.width}; name that {role} in gag.yaml, or build the domain again"
            )
        if not present.fingerprint and not same_answer(self.known, present.known):
            raise MismatchError(
                f"{domain} was built for the {role} {self.model}, and what its server runs answers "
                f"otherwise; start the server with that {role}, or build the domain again"
            )
        if present.fingerprint and present.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{domain} was built for the {role} {self.model} with fingerprint "
                f"{self.fingerprint[:12]}, this "
                f"project's has {present.fingerprint[:12]}; name that {role} in gag.yaml, or build "
                "the domain again"
            )


def same_answer(true: Sequence[KnownToken], given: Sequence[KnownToken]) -> bool:
    """Say whether an answer is a model's own, to the rounding of other kernels and precisions.

    Behind a token that was nearly another one, nothing is compared any more.
    """
    for wanted, said in zip(true, given, strict=False):
        if abs(wanted.log_probability - said.log_probability) > NEAR:
            return False
        if wanted.id != said.id:
            return wanted.lead < NEAR
    return bool(true) and len(true) == len(given)


def write_known(expert: Path, answer: Sequence[KnownToken]) -> None:
    """Write beside an expert's weights what it answers to `KNOWN_PROMPT`."""
    write_json(expert / KNOWN, [token.model_dump() for token in answer])


def read_known(expert: Path) -> tuple[KnownToken, ...]:
    """Read what an expert answers; ArtifactError: it is not there, or no such answer."""
    try:
        return tuple(TypeAdapter(list[KnownToken]).validate_json((expert / KNOWN).read_bytes()))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{expert.name}/{KNOWN} is not there or not whole; build the domain again"
        ) from error


@dataclass(frozen=True)
class EncoderSpec:
    """What makes two banks comparable; a bank of another encoder is refused."""

    fingerprint: str
    pooling: str
    max_tokens: int
    width: int
    known: tuple[float, ...] = field(default=(), compare=False, repr=False)  # of `KNOWN_PROMPT`'s vector


class BankFacts(Facts):
    """What a manifest records of a bank."""

    count: int
    centres: int
    sample: int  # questions in it that it can be judged by
    encoder: EncoderSpec
    added: tuple[str, ...] = ()  # hashes of the files that `gag prototypes --add` added


@dataclass(frozen=True)
class TransferFacts:
    """How much of what the expert writes reaches the base's answers, on validation questions.

    The shares are of the gold answer's words that the question does not hold.
    """

    questions: int
    base: float  # alone
    gag: float  # with its vectors
    shuffled: float  # with another question's vectors
    text: float  # with the expert's text in the vectors' place
    transfer: float | None = None  # (gag - shuffled) / (text - base); None where the text adds nothing
    interval: tuple[float, float] | None = None  # of 95 %

    @property
    def line(self) -> str:
        """The figures in one line."""
        asked = (
            f"base {self.base:.2f}, GAG {self.gag:.2f}, with another question's vectors {self.shuffled:.2f}, "
            f"with the expert's text {self.text:.2f}"
        )
        if self.transfer is None or self.interval is None:
            return f"not measurable ({asked})"
        low, high = self.interval
        return f"{self.transfer:.2f} of the expert's knowledge arrives ({low:.2f} to {high:.2f}; {asked})"

    def advice(self, readout: ReadoutSettings) -> str:
        """Say what to try next; nothing where most of the knowledge arrives."""
        if self.transfer is None:
            return (
                "the expert's text adds next to nothing to what the base says by itself, or the validation "
                "rows' texts are longer than the base's positions: see whether the "
                "expert writes the answers (the texts in runs/), and whether the base alone knows them"
            )
        if self.transfer >= FAITHFUL:
            return ""
        return f"WARNING: this domain will answer fluently and falsely; {_next_step(readout)}"


def _next_step(readout: ReadoutSettings) -> str:
    if readout.select != "salient":
        return (
            "set preset: salient in gag.yaml in the place of what stands under readout and align, "
            "and build again"
        )
    if readout.slots < MANY_SLOTS:
        return f"set readout.slots: {2 * readout.slots}, and build again"
    return "give alignment more rows, or raise align.epochs, and build again"


class ScoreFacts(Facts):
    """What alignment reached; None of a domain that was trained elsewhere."""

    val_loss: float | None
    transfer: TransferFacts | None


class DomainFacts(Facts):
    """What domain.json says."""

    schema_version: int
    key: str
    name: str
    created: str
    base: ModelFacts
    expert: ModelFacts
    tuning: str
    projector: str
    readout: ReadoutSettings
    common: dict[str, Share]  # share of the expert's answers that hold a word, of those that many share
    prompts: PromptSettings
    bank: BankFacts
    data: dict[str, str]
    scores: ScoreFacts


@dataclass(frozen=True)
class Domain:
    """A domain on disk."""

    folder: Path
    facts: DomainFacts
    files: dict[str, str]  # all that belongs to it beside domain.json, with their hashes

    @property
    def name(self) -> str:
        """The name that it is known by here: its folder's."""
        return self.folder.name

    @property
    def revision(self) -> str:
        """Name what it holds: the same files under the same description have the same one."""
        described = f"{self.facts.model_dump_json()}\n{json.dumps(self.files, sort_keys=True)}"
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    @property
    def expert(self) -> Path:
        """The folder of its adapter or full weights."""
        return self.folder / EXPERT

    def check(self, only: tuple[str, ...] | None = None, anew: bool = False) -> None:
        """Check files (default: all) against their hashes.

        Once, and again where sizes or times changed, or `anew`.
        """
        read_manifest(self.folder, DOMAIN, only, anew)


def load_domain(folder: Path, only: tuple[str, ...] | None = None, anew: bool = False) -> Domain:
    """Read a domain folder's description, and check it against the schema and its files against their hashes.

    Args:
        folder: a folder under domains/, or one to be copied there.
        only: the files, or folders in it, that are needed now (default: all); `()` checks the description
            alone.
        anew: hash the files whatever was seen before.

    Raises:
        ArtifactError: it is not complete, edited, or of another version; the message says which file.
    """
    content = read_manifest(folder, DOMAIN, only, anew)
    try:
        described = {key: value for key, value in content.items() if key not in ("schema", "files")}
        facts = DomainFacts.model_validate({"schema_version": content["schema"], **described})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArtifactError(
            f"{folder.name}/{DOMAIN}: {where}: {problem['msg']}; build or copy the domain again"
        ) from error
    missing = {PROJECTOR, BANK, STATISTICS} - content["files"].keys()
    if missing or not any(name.startswith(f"{EXPERT}/") for name in content["files"]):
        raise ArtifactError(f"{folder.name}/{DOMAIN} lists no projector, bank or expert; build it again")
    return Domain(folder, facts, content["files"])

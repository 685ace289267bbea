"""The settings of a project as models: frozen, a description on each field, unknown keys refused."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gag.errors import SettingsError

GENERAL = "general"
PRESETS: dict[str, dict[str, Any]] = {  # v1 and v4 are the paper's; v1 is the default of every setting
    "v1": {},
    "v4": {
        "readout": {"layers": [-1, -2, -4, -6], "slots": 4, "pooling": "norm", "max_new_tokens": 640},
        "align": {"projector": "gated_residual", "learning_rate": 1e-4, "steps": 800, "warmup": 0.1, "clip": 1.0,
                  "semantic": 0.01, "diversity": 0.001},
    },
    "vocabulary": {  # ours, docs/training.md
        "readout": {"space": "vocabulary", "layers": [-1], "pooling": "mean"},
        "align": {"projector": "gated_residual", "start": "identity"},
    },
}  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Settings(BaseModel):
    """The base of every settings model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _whole_batches(settings: Any) -> Any:
    if settings.batch_size > settings.micro_batch_size and settings.batch_size % settings.micro_batch_size:
        raise ValueError(
            f"batch_size {settings.batch_size} is no multiple of micro_batch_size {settings.micro_batch_size}"
        )
    return settings


class ModelSettings(Settings):
    """A causal language model and how to load it."""

    model: str = Field(description="Hugging Face id, or a folder (relative to gag.yaml)")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: as stored; a CPU: float32"
    )
    device: str = Field(default="auto", description="auto: CUDA, then MPS, then CPU")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="attention implementation"
    )


class PromptSettings(Settings):
    """The words around a domain's questions, the same in tuning, readout and serving."""

    expert: str = Field(
        default="You are an expert of this field. Write the background knowledge needed to answer the question.",
        min_length=1, description="system prompt of the expert")  # fmt: skip
    answer: str = Field(
        default="Answer the question with the help of the knowledge given.",
        min_length=1, description="instruction to the base, before question and knowledge")  # fmt: skip


class DomainSettings(Settings):
    """One domain's data files (relative to gag.yaml) and prompts."""

    train: str | None = Field(default=None, description="rows for both the expert and the projector")
    adapt: str | None = Field(default=None, description="rows that teach the expert (default: train)")
    align: str | None = Field(default=None, description="rows that train the projector (default: train)")
    val: str | None = Field(
        default=None, description="rows that choose the best projector (default: a tenth of align)"
    )
    test: str | None = Field(default=None, description="rows that nothing else may share a group with")
    corpus: str | None = Field(
        default=None, description="passages of the domain, one JSON object with `text` per line"
    )
    prompts: PromptSettings = PromptSettings()

    def file(self, role: Literal["adapt", "align"]) -> str | None:
        """Return the file of a role, or the shared train file."""
        return getattr(self, role) or self.train


class AdaptSettings(Settings):
    """Stage I: how a domain's expert is tuned (paper: full tuning, 5e-6, 8 epochs, batch 128)."""

    tuning: Literal["lora", "full"] = Field(
        default="lora", description="an adapter over the shared backbone, or all weights"
    )
    rank: int = Field(default=32, ge=1, description="LoRA rank")
    learning_rate: float = Field(default=2e-4, gt=0, description="peak rate; full tuning wants about 5e-6")
    epochs: float = Field(default=8, gt=0)
    batch_size: int = Field(default=128, ge=1, description="rows per optimiser step")
    micro_batch_size: int = Field(default=16, ge=1, description="rows per forward pass")
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=2048, ge=8, description="longest row, prompt and answer together")
    gradient_checkpointing: bool = Field(
        default=True, description="recompute activations: less memory, a third more time"
    )
    checkpoint_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    seed: int = Field(default=980406, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _whole_steps(self) -> "AdaptSettings":
        return _whole_batches(self)


class CorpusSettings(Settings):
    """Before stage I, where a domain has a corpus: pre-training of the expert on its documents (paper, v4: full, 5e-5)."""

    learning_rate: float = Field(default=2e-4, gt=0, description="peak rate; full tuning wants about 5e-5")
    epochs: float = Field(default=2, gt=0)
    batch_size: int = Field(default=16, ge=1, description="blocks per optimiser step")
    micro_batch_size: int = Field(default=4, ge=1, description="blocks per forward pass")
    block_tokens: int = Field(
        default=1024, ge=8, description="documents are packed to blocks of this many tokens"
    )
    val_share: float = Field(
        default=0.03, gt=0, lt=1, description="share of the documents that choose the best checkpoint"
    )
    warmup: float = Field(default=0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.01, ge=0)

    @model_validator(mode="after")
    def _whole_steps(self) -> "CorpusSettings":
        return _whole_batches(self)


class ReadoutSettings(Settings):
    """What is read from the expert: how much it writes, which layers, how they are pooled to slots."""

    space: Literal["hidden", "vocabulary"] = Field(
        default="hidden",
        description="states as they are, or what they foretell in the embeddings of a base that shares its tokens",
    )
    layers: tuple[int, ...] = Field(
        default=(-4,), min_length=1, description="into hidden_states; -1 is after the final norm"
    )
    slots: int = Field(
        default=1, ge=1, le=64, description="segments of the written tokens, one injected vector each"
    )
    pooling: Literal["last", "mean", "norm", "relative"] = Field(
        default="last",
        description="last token; or over each segment: mean, weights by state norm (v4), or by norm over the mean norm",
    )
    pooling_temperature: float = Field(default=1.0, gt=0, description="of the weights of norm and relative")
    max_new_tokens: int = Field(
        default=1024, ge=0, description="the expert's budget; 0 reads the prompt's last token"
    )
    temperature: float = Field(default=0.0, ge=0, description="of the expert's writing; 0: greedy")
    top_p: float = Field(
        default=0.8, gt=0, le=1, description="with a temperature: share of the probability that is kept"
    )
    top_k: int = Field(default=20, ge=0, description="with a temperature: tokens that are kept; 0: all")
    seed: int = Field(
        default=980406, ge=0, lt=2**32, description="with a temperature: joined with each question"
    )
    batch_tokens: int = Field(
        default=65_536, ge=1, description="prompt and budget tokens of the questions decoded together"
    )
    folds: int = Field(
        default=1, ge=1, le=20, description="cross-fitting: rows are read by an expert that never saw them"
    )

    @model_validator(mode="after")
    def _one_last_token(self) -> "ReadoutSettings":
        if self.pooling == "last" and self.slots > 1:
            raise ValueError(f"pooling last makes 1 slot, not {self.slots}; choose mean, norm or relative")
        return self

    @model_validator(mode="after")
    def _last_layer_foretells(self) -> "ReadoutSettings":
        if self.space == "vocabulary" and self.layers != (-1,):
            raise ValueError("space vocabulary reads the layer that foretells tokens; set layers: [-1]")
        return self

    def shape(self, expert: int, base: int) -> tuple[int, int, int]:
        """Return the shape of a question's slots from the models' widths: [S, L, De], or Db wide in the vocabulary's space."""
        return self.slots, len(self.layers), base if self.space == "vocabulary" else expert


class AlignSettings(Settings):
    """Stage II: how a projector is trained (paper: 6e-3, 5 epochs, batch 32)."""

    projector: Literal["mlp", "gated_residual"] = Field(
        default="mlp", description="v1's network, or v4's over several layers"
    )
    start: Literal["ridge", "identity", "random"] = Field(
        default="ridge",
        description="closed form, towards the answers' embeddings; identity: for readout.space vocabulary",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of the fp32 projector")
    epochs: int = Field(default=5, ge=1)
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, in place of epochs")
    batch_size: int = Field(default=32, ge=1, description="rows per optimiser step, over all processes")
    micro_batch_size: int = Field(default=32, ge=1, description="rows per forward pass, of like length")
    warmup: float = Field(default=0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    noise: float = Field(
        default=0.0, ge=0, description="readout noise in training, in standard deviations of each feature"
    )
    semantic: float = Field(
        default=0.0, ge=0, description="weight of the loss against the gold answer's sentence embedding"
    )
    semantic_encoder: str | None = Field(
        default=None,
        description="a sentence-transformers model or folder (default: the expert backbone, mean-pooled)",
    )
    diversity: float = Field(
        default=0.0, ge=0, description="weight of the loss that keeps a question's slots apart"
    )
    distill: float = Field(
        default=0.0, ge=0, description="weight of the loss against the base's answers from text"
    )
    cache_gb: float = Field(
        default=0.0, ge=0, description="memory for the questions' keys and values, kept over the epochs"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many epochs without a better validation"
    )
    checkpoint_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    seed: int = Field(default=980406, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _identity_needs_a_linear_path(self) -> "AlignSettings":
        if self.start == "identity" and self.projector == "mlp":
            raise ValueError(
                "start identity needs a projector with a linear path; set projector: gated_residual"
            )
        return self


class EncoderSettings(Settings):
    """The router's query encoder, which turns questions into vectors."""

    kind: Literal["expert", "transformer", "sentence-transformers", "vectors"] = Field(
        default="expert",
        description="the expert backbone without adapters; any encoder of transformers or sentence-transformers; or a folder "
        "with questions.jsonl and vectors.safetensors",
    )
    model: str | None = Field(
        default=None, description="id or folder (relative to gag.yaml) of any kind but expert"
    )
    revision: str | None = Field(
        default=None, description="on the hub; with vectors: the name of what made them"
    )
    pooling: Literal["mean", "first"] = Field(
        default="mean", description="of kind transformer: all tokens, or the first"
    )
    device: str = Field(default="auto", description="auto: CUDA, then MPS, then CPU")

    @model_validator(mode="after")
    def _named(self) -> "EncoderSettings":
        if (self.kind == "expert") != (self.model is None):
            raise ValueError(f"encoder.kind {self.kind} {'takes no' if self.model else 'needs a'} model")
        return self


class RouterSettings(Settings):
    """The training-free router: the published rule PPR, or closed-form rules over the same banks."""

    encoder: EncoderSettings = EncoderSettings()
    rule: Literal["auto", "blend", "lda", "whitened", "ppr"] = Field(
        default="auto",
        description="auto: the best on the questions held out; ppr: as published, with `margin` alone",
    )
    alpha: float = Field(
        default=0.01, gt=0, lt=1, description="share of general questions that may go to specialists"
    )
    centres: int = Field(
        default=32, ge=1, description="k-means centres per domain, at most as many as questions"
    )
    max_questions: int = Field(
        default=10_000, ge=1, description="questions of a domain that its bank is made from"
    )
    held_out: float = Field(
        default=0.2, ge=0, lt=1, description="share of them kept for calibration, at most 500"
    )
    max_tokens: int = Field(default=256, ge=1, description="a question's tokens that the encoder reads")
    priors: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="how often each domain is asked, as shares of any whole; 1 for one that is not named",
    )
    margin: float = Field(
        default=0.0, ge=0, description="with ppr: how far a domain's score must lie above general's"
    )
    keep_questions: bool = Field(
        default=False, description="a domain carries its questions, for `gag route --explain`"
    )
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=980406, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _priors_need_probabilities(self) -> "RouterSettings":
        if self.priors and self.rule == "ppr":
            raise ValueError(
                "router.priors weighs probabilities, and rule ppr, as published, has none; take rule auto"
            )
        return self


class GeneralSettings(Settings):
    """The general route's own questions."""

    questions: str | None = Field(
        default=None, description="JSONL of questions (default: the list in the package)"
    )
    test: str | None = Field(
        default=None, description="rows that judge whether general questions stay what they were"
    )


class DecodingSettings(Settings):
    """How the base writes an answer; the same on every route."""

    max_new_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=32, ge=1, description="questions answered together")


Metric = Literal["contains", "exact", "f1", "bertscore", "similarity"]


class VariantSettings(Settings):
    """Another readout and projector of the same experts: what differs from the project's own settings."""

    readout: dict[str, Any] = {}
    align: dict[str, Any] = {}


class EvaluationSettings(Settings):
    """How answers are judged."""

    metrics: dict[str, tuple[Metric, ...]] = Field(
        default={GENERAL: ("contains",), "*": ("bertscore", "similarity")},
        description="a row's `dataset_name`, or else its domain -> metrics, the first of them the main one; *: all others",
    )
    bertscore: str = Field(
        default="allenai/scibert_scivocab_uncased",
        description="encoder of BERTScore; expert: the expert backbone's last states",
    )
    bertscore_layer: int = Field(default=8, ge=1, description="of that encoder")
    similarity: str = Field(
        default="sentence-transformers/all-mpnet-base-v2",
        description="sentence encoder; expert: the expert backbone's mean",
    )
    variants: dict[str, VariantSettings] = Field(
        default={},
        description="other versions of GAG for `gag compare`, by name: readout and align where they differ",
    )

    def of(self, dataset: str, domain: str | None) -> tuple[Metric, ...]:
        """Return the metrics of a data set, or else of a domain."""
        named = self.metrics.get(dataset) or self.metrics.get(domain or "") or self.metrics.get("*")
        if not named:
            raise SettingsError(
                f"no metric for the data set {dataset!r}; add it to evaluation.metrics in gag.yaml, or *"
            )
        return named


class ProjectSettings(Settings):
    """Everything in gag.yaml."""

    preset: Literal["v1", "v4", "vocabulary"] = Field(
        default="v1", description="version of the method whose settings lie under these"
    )
    base: ModelSettings
    expert: ModelSettings
    general: GeneralSettings = GeneralSettings()
    router: RouterSettings = RouterSettings()
    corpus: CorpusSettings = CorpusSettings()
    adapt: AdaptSettings = AdaptSettings()
    readout: ReadoutSettings = ReadoutSettings()
    align: AlignSettings = AlignSettings()
    decoding: DecodingSettings = DecodingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: Literal["none", "wandb", "trackio", "tensorboard"] = Field(
        default="none", description="where training curves also go; runs/ always has them as JSONL"
    )
    labels: dict[str, str] = Field(
        default={}, description="an evaluation row's `label` or `dataset_name` -> its domain, or general"
    )
    domains: dict[str, DomainSettings] = {}

    @model_validator(mode="after")
    def _layers_fit(self) -> "ProjectSettings":
        if self.align.projector == "mlp" and len(self.readout.layers) > 1:
            raise ValueError(
                f"the mlp projector reads one layer, readout.layers has {len(self.readout.layers)}; "
                "name one, or set align.projector: gated_residual"
            )
        return self

    @field_validator("domains")
    @classmethod
    def _names(cls, domains: dict[str, DomainSettings]) -> dict[str, DomainSettings]:
        for name in domains:
            check_name(name)
        return domains


def check_name(name: str) -> str:
    """Return a domain's name if it is safe as a folder name and not `general`."""
    if name == GENERAL:
        raise SettingsError(
            "no domain may be called general: that is the base's own route; choose another name"
        )
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot name a domain; use lower-case letters, digits, - and _, at most 64"
        )
    return name

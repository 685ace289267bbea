"""The settings of a project, as gag.yaml holds them: models, domains, stages, router, evaluation."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gag.errors import SettingsError
from gag.project.evaluation_settings import EvaluationSettings
from gag.project.hyperparameters import AdaptSettings, AlignSettings, PretrainSettings, ReadoutSettings
from gag.project.marks import Settings, When, computation, result
from gag.project.remote_settings import RemoteSettings
from gag.project.serve_settings import ServeSettings

GENERAL = "general"
BANK, ROUTING = "bank", "routing"  # what router settings change: the banks, or only the routes over them
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class ModelSettings(Settings):
    """A causal language model and how to load it."""

    model: str = result(description="Hugging Face id, a folder or a GGUF file (relative to gag.yaml)")
    revision: str | None = result(None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = result(
        "auto", description="auto: as stored; a CPU: float32"
    )
    quantization: Literal["none", "nf4", "int8"] = result(
        "none", description="of a base, while it is loaded, by bitsandbytes: 4 or 8 bits a weight"
    )
    device: str = computation("auto", description="auto: CUDA, then MPS, then CPU")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = computation(
        "sdpa", description="attention implementation"
    )


class PromptSettings(Settings):
    """The words around a domain's questions, the same in tuning, readout and serving."""

    expert: str = result(
        "You are an expert of this field. Write the background knowledge needed to answer the question.",
        description="system prompt of the expert, at the head of the question where its template has no "
        "system turn; empty: none",
    )
    answer: str = result(
        "Answer the question with the help of the knowledge given.",
        min_length=1,
        description="instruction to the base, before question and knowledge",
    )
    layout: str = result(
        "{answer}\nQuestion:\n{question}\nKnowledge:\n{knowledge}",
        description="the base's turn: where instruction, question and knowledge stand in it",
    )

    @field_validator("layout")
    @classmethod
    def _holds_question_and_knowledge(cls, layout: str) -> str:
        places = [layout.find(name) for name in ("{question}", "{knowledge}")]
        once = layout.count("{question}") == layout.count("{knowledge}") == 1 >= layout.count("{answer}")
        if not once or -1 in places or places[0] > places[1]:
            raise ValueError(
                "layout needs {question} and, behind it, {knowledge}, once each, and {answer} once at most"
            )
        return layout

    def around(self, system: str = "") -> tuple[str, str, str]:
        """Return the base's words before the question, between it and the knowledge, and behind that."""
        before, _, rest = self.layout.partition("{question}")
        between, _, behind = rest.partition("{knowledge}")
        instruction = f"{system}\n\n{self.answer}" if system else self.answer
        if system and "{answer}" not in self.layout:
            before = f"{system}\n\n{before}"
        before, between, behind = (
            part.replace("{answer}", instruction) for part in (before, between, behind)
        )
        return before, between, behind


class DomainSettings(Settings):
    """One domain's data files (relative to gag.yaml) and prompts; what is in a file counts, not its name."""

    train: str | None = computation(
        None,
        description="rows for both the expert and the projector; validation groups teach neither",
    )
    adapt: str | None = computation(None, description="rows that teach the expert (default: train)")
    align: str | None = computation(None, description="rows that train the projector (default: train)")
    val: str | None = computation(
        None, description="rows that choose the best projector (default: a tenth of align's groups)"
    )
    test: str | None = computation(None, description="rows that nothing else may share a group with")
    corpus: str | None = computation(
        None, description="passages of the domain, one JSON object with `text` per line"
    )
    sources: bool = computation(
        False, description="whether the built folder carries the corpus's passages, so that answers name them"
    )
    prompts: PromptSettings = PromptSettings()

    @model_validator(mode="after")
    def _sources_are_there(self) -> Self:
        if self.sources and not self.corpus:
            raise ValueError("sources needs a corpus, whose passages answers name; name one, or leave it out")
        return self

    def file(self, role: Literal["adapt", "align"]) -> str | None:
        """Return the file of a role, or the shared train file."""
        return getattr(self, role) or self.train


class EncoderSettings(Settings):
    """The router's query encoder, which turns questions into vectors."""

    kind: Literal["expert", "transformer", "sentence-transformers", "vectors"] = result(
        "expert",
        description="the expert backbone without adapters; any encoder of transformers or "
        "sentence-transformers; "
        "or a folder with questions.jsonl and vectors.safetensors",
    )
    model: str | None = result(None, description="id or folder (relative to gag.yaml) of any kind but expert")
    revision: str | None = result(None, description="on the hub; with vectors: the name of what made them")
    pooling: Literal["mean", "first"] = result(
        "mean",
        when=When("kind", among=("transformer",)),
        description="of all tokens, or the first token's state",
    )
    device: str = computation("auto", description="auto: CUDA, then MPS, then CPU")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.kind == "expert") != (self.model is None):
            raise ValueError(f"encoder.kind {self.kind} {'takes no' if self.model else 'needs a'} model")
        return self


class RouterSettings(Settings):
    """The training-free router: the published rule PPR, or closed-form rules over the same banks."""

    encoder: EncoderSettings = EncoderSettings()
    rule: Literal["auto", "blend", "lda", "whitened", "ppr"] = result(
        "auto",
        stage=ROUTING,
        description="auto: the best on unseen questions; ppr: as published, with `margin` alone",
    )
    alpha: float = result(
        0.01,
        gt=0,
        lt=1,
        stage=ROUTING,
        when=When("rule", among=("auto", "blend", "lda", "whitened")),
        description="share of general questions that may go to specialists",
    )
    max_abstention: float = result(
        0.03,
        ge=0,
        lt=1,
        stage=ROUTING,
        when=When("rule", among=("auto", "blend", "lda", "whitened")),
        description="share of a domain's questions that may be given up for `alpha`; beyond it the router "
        "says what it promises instead",
    )
    priors: dict[str, Annotated[float, Field(gt=0)]] = result(
        {},
        stage=ROUTING,
        description="how often each domain is asked, as shares of any whole; 1 for one that is not named",
    )
    margin: float = result(
        0.0,
        ge=0,
        stage=ROUTING,
        when=When("rule", among=("ppr",)),
        description="how far a domain's score must lie above general's",
    )
    centres: int = result(
        32, ge=1, stage=BANK, description="k-means centres per domain, at most as many as questions"
    )
    max_questions: int = result(
        10_000,
        ge=1,
        stage=BANK,
        description="questions of a domain that its bank is made from, drawn at random",
    )
    max_tokens: int = result(256, ge=1, stage=BANK, description="a question's tokens that the encoder reads")
    keep_questions: bool = result(
        False, stage=BANK, description="a domain carries its questions, for `gag route --explain`"
    )
    seed: int = result(980406, ge=0, lt=2**32, stage=BANK, description="of k-means and of the draw")
    batch_size: int = computation(64, ge=1, description="questions encoded together")

    @model_validator(mode="after")
    def _priors_need_probabilities(self) -> Self:
        if self.priors and self.rule == "ppr":
            raise ValueError(
                "router.priors weighs probabilities, and rule ppr, as published, has none; take rule auto"
            )
        return self


class GeneralSettings(Settings):
    """The general route's own questions; what is in a file counts, not its name."""

    questions: str | None = computation(
        None, description="JSONL of questions (default: the list in the package)"
    )
    test: str | None = computation(
        None, description="rows that judge whether general questions stay what they were"
    )


class DecodingSettings(Settings):
    """How the base answers, the same on every route, and how many domains are ready to."""

    max_new_tokens: int = result(256, ge=1, description="an answer's tokens at most")
    batch_size: int = computation(32, ge=1, description="questions answered together")
    resident_domains: int = computation(
        16,
        ge=1,
        description="domains whose expert and projector stay loaded; the least recently asked leave first",
    )


class ProjectSettings(Settings):
    """Everything in gag.yaml."""

    preset: Literal["v1", "v4", "vocabulary", "salient"] = computation(
        "v1", description="version of the method whose settings lie under these"
    )
    base: ModelSettings
    expert: ModelSettings
    general: GeneralSettings = GeneralSettings()
    router: RouterSettings = RouterSettings()
    pretrain: PretrainSettings = PretrainSettings()
    adapt: AdaptSettings = AdaptSettings()
    readout: ReadoutSettings = ReadoutSettings()
    align: AlignSettings = AlignSettings()
    decoding: DecodingSettings = DecodingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    engine: Literal["transformers", "remote"] = computation(
        "transformers", description="what runs the models: this process, or vLLM servers (see remote)"
    )
    remote: RemoteSettings = RemoteSettings()
    serve: ServeSettings = ServeSettings()
    tracking: Literal["none", "wandb", "trackio", "tensorboard"] = computation(
        "none", description="where training curves also go; runs/ always has them as JSONL"
    )
    labels: dict[str, str] = result(
        {}, description="an evaluation row's `label` or `dataset_name` -> its domain, or general"
    )
    domains: dict[str, DomainSettings] = Field(
        default={}, description="a domain's name -> its data and prompts"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_texts(cls, value: Any) -> Any:
        return {str(key): name for key, name in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _layers_fit(self) -> Self:
        if self.expert.quantization != "none":
            raise ValueError("expert.quantization: an expert is tuned as it is; only a base is quantised")
        if self.align.projector == "mlp" and len(self.readout.layers) > 1:
            raise ValueError(
                f"the mlp projector reads one layer, readout.layers has {len(self.readout.layers)}; "
                "name one, or set align.projector: gated_residual"
            )
        if self.align.projector == "residual" and self.readout.space != "vocabulary":
            raise ValueError(
                "the residual projector begins with the base's own embeddings; set readout.space: "
                "vocabulary, or align.projector: gated_residual"
            )
        return self

    def without_effect(self, written: Any, path: str = "") -> list[str]:
        """Name the settings that somebody wrote and that do not act, each with what would make it act."""
        shadowed = [name for name, one in self.domains.items() if one.train and one.adapt and one.align]
        return super().without_effect(written, path) + [
            f"domains.{name}.train has no effect: adapt and align name rows of their own" for name in shadowed
        ]

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

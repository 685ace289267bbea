"""The hyperparameters of tuning, pre-training, readouts and alignment, and the presets over them."""

from typing import Any, Literal, Self

from pydantic import model_validator

from gag.project.marks import Settings, When, computation, result

PRESETS: dict[str, dict[str, Any]] = {  # v1 and v4 are the paper's; v1 is the default of every setting
    "v1": {},
    "v4": {
        "readout": {"layers": [-1, -2, -4, -6], "slots": 4, "pooling": "norm", "max_new_tokens": 640},
        "align": {
            "projector": "gated_residual",
            "learning_rate": 1e-4,
            "steps": 800,
            "warmup": 0.1,
            "clip": 1.0,
            "semantic": 0.01,
            "diversity": 0.001,
        },
    },
    "vocabulary": {  # ours, docs/training.md
        "readout": {"space": "vocabulary", "layers": [-1], "pooling": "mean"},
        "align": {"projector": "gated_residual", "start": "identity"},
    },
    "salient": {  # ours, docs/training.md
        "readout": {"space": "vocabulary", "select": "salient", "layers": [-1], "slots": 8},
        "align": {"projector": "residual", "start": "identity", "learning_rate": 2e-4, "substitute": 0.5},
    },
}


def _whole_batches(settings: Any) -> Any:
    if settings.batch_size > settings.micro_batch_size and settings.batch_size % settings.micro_batch_size:
        raise ValueError(
            f"batch_size {settings.batch_size} is no multiple of micro_batch_size {settings.micro_batch_size}"
        )
    return settings


class AdaptSettings(Settings):
    """Stage I: how a domain's expert is tuned (paper: full tuning, 5e-6, 8 epochs, batch 128)."""

    tuning: Literal["lora", "full"] = result(
        "lora", description="an adapter over the shared backbone, or all weights"
    )
    rank: int = result(32, ge=1, when=When("tuning", among=("lora",)), description="LoRA rank")
    learning_rate: float = result(2e-4, gt=0, description="peak rate; full tuning wants about 5e-6")
    epochs: float = result(8.0, gt=0, description="passes over the rows")
    batch_size: int = result(128, ge=1, description="rows per optimiser step, over all processes")
    micro_batch_size: int = computation(16, ge=1, description="rows per forward pass")
    warmup: float = result(0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = result(0.0, ge=0, description="of AdamW")
    max_tokens: int = result(2048, ge=8, description="longest row, prompt and answer together")
    gradient_checkpointing: bool = computation(
        True, description="recompute activations: less memory, a third more time"
    )
    checkpoint_minutes: float = computation(10.0, ge=0, description="minutes between two checkpoints")
    seed: int = result(980406, ge=0, lt=2**32, description="of the order of rows and of LoRA's start")

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        return _whole_batches(self)


class PretrainSettings(Settings):
    """Before stage I, where a domain has a corpus: the expert reads its documents (paper, v4: full, 5e-5)."""

    learning_rate: float = result(2e-4, gt=0, description="peak rate; full tuning wants about 5e-5")
    epochs: float = result(2.0, gt=0, description="passes over the documents")
    batch_size: int = result(16, ge=1, description="blocks per optimiser step")
    micro_batch_size: int = computation(4, ge=1, description="blocks per forward pass")
    block_tokens: int = result(1024, ge=8, description="documents are packed to blocks of this many tokens")
    val_share: float = result(
        0.03, gt=0, lt=1, description="share of the documents that choose the best checkpoint"
    )
    warmup: float = result(0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = result(0.01, ge=0, description="of AdamW")

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        return _whole_batches(self)


class ReadoutSettings(Settings):
    """What is read from the expert: how much it writes, which layers, how they are pooled to slots."""

    space: Literal["hidden", "vocabulary"] = result(
        "hidden",
        description="states as they are, or the tokens that they predict, in the embeddings of a base "
        "that shares them",
    )
    select: Literal["segments", "salient"] = result(
        "segments",
        description="what makes the slots: the whole text, in segments; or its words that are news and "
        "answer the question",
    )
    layers: tuple[int, ...] = result(
        (-4,), min_length=1, description="into hidden_states; -1 is after the final norm"
    )
    slots: int = result(
        1, ge=1, le=64, description="segments of the generated tokens, or salient ones: injected vectors"
    )
    pooling: Literal["last", "mean", "norm", "relative"] = result(
        "last",
        when=When("select", among=("segments",)),
        description="last token; or over each segment: mean, weights by state norm (v4), or by norm "
        "over the mean norm",
    )
    pooling_temperature: float = result(
        1.0,
        gt=0,
        when=When("pooling", among=("norm", "relative")),
        description="of the weights of norm, relative",
    )
    max_new_tokens: int = result(
        1024, ge=0, description="the expert's budget; 0 reads the prompt's last token"
    )
    temperature: float = result(0.0, ge=0, description="of the expert's decoding; 0: greedy")
    top_p: float = result(
        0.8,
        gt=0,
        le=1,
        when=When("temperature", above=0),
        description="share of the probability that is kept",
    )
    top_k: int = result(
        20, ge=0, when=When("temperature", above=0), description="tokens that are kept; 0: all"
    )
    seed: int = result(
        980406, ge=0, lt=2**32, when=When("temperature", above=0), description="joined with each question"
    )
    batch_tokens: int = computation(
        65_536, ge=1, description="prompt and budget tokens of the questions decoded together"
    )
    folds: int = result(
        1, ge=1, le=20, description="cross-fitting: rows are read by an expert that never saw them"
    )

    @model_validator(mode="after")
    def _one_last_token(self) -> Self:
        if self.select == "segments" and self.pooling == "last" and self.slots > 1:
            raise ValueError(f"pooling last makes 1 slot, not {self.slots}; choose mean, norm or relative")
        return self

    @model_validator(mode="after")
    def _words_are_written(self) -> Self:
        if self.select == "salient" and self.max_new_tokens == 0:
            raise ValueError("select salient reads words that the expert writes; set max_new_tokens above 0")
        return self

    @model_validator(mode="after")
    def _last_layer_predicts(self) -> Self:
        if self.space == "vocabulary" and self.layers != (-1,):
            raise ValueError("space vocabulary reads the layer that predicts tokens; set layers: [-1]")
        return self

    def writing_key(self) -> dict[str, Any]:
        """Return the settings that decide what the expert writes, whatever is read of it."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "folds")
        return {name: value for name, value in self.key().items() if name in names}

    def shape(self, expert: int, base: int) -> tuple[int, int, int]:
        """Return the shape of a question's slots from the models' widths.

        [S, L, De], or Db wide in the vocabulary.
        """
        return self.slots, len(self.layers), base if self.space == "vocabulary" else expert


class AlignSettings(Settings):
    """Stage II: how a projector is trained (paper: 6e-3, 5 epochs, batch 32)."""

    projector: Literal["mlp", "gated_residual", "residual"] = result(
        "mlp",
        description="v1's network; v4's over several layers; or ours, which begins as the identity exactly",
    )
    start: Literal["ridge", "identity", "random"] = result(
        "ridge",
        description="closed form, towards the answers' embeddings; identity: for readout.space vocabulary",
    )
    bridge: str | None = result(
        None, description="a bridge's folder (`gag bridge`) to start from, in place of the closed form"
    )
    learning_rate: float = result(1e-3, gt=0, description="peak rate of the fp32 projector")
    epochs: int = result(5, ge=1, when=When("steps"), description="passes over the rows")
    steps: int | None = result(None, ge=1, description="optimiser steps, in place of epochs")
    batch_size: int = result(32, ge=1, description="rows per optimiser step, over all processes")
    batch_tokens: int = computation(
        8192, ge=1, description="tokens and vectors of a forward pass, over rows of like length"
    )
    warmup: float = result(0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = result(0.0, ge=0, description="of AdamW")
    clip: float | None = result(None, gt=0, description="largest norm of the gradient")
    noise: float = result(
        0.0, ge=0, description="readout noise in training, in standard deviations of each feature"
    )
    substitute: float = result(
        0.0,
        ge=0,
        le=1,
        when=When("projector", among=("residual",)),
        description="share of the tokens in both slots and answer that training exchanges for others, "
        "so that copying is learned",
    )
    semantic: float = result(
        0.0, ge=0, description="weight of the loss against the gold answer's sentence embedding"
    )
    semantic_encoder: str | None = result(
        None,
        when=When("semantic", above=0),
        description="a sentence-transformers model or folder (default: the expert backbone, mean-pooled)",
    )
    diversity: float = result(0.0, ge=0, description="weight of the loss that keeps a question's slots apart")
    distill: float = result(0.0, ge=0, description="weight of the loss against the base's answers from text")
    cache_gb: float = computation(
        0.0, ge=0, description="memory for the questions' keys and values, kept over the epochs"
    )
    patience: int | None = result(
        None, ge=1, description="stop after this many epochs without a better validation"
    )
    checkpoint_minutes: float = computation(10.0, ge=0, description="minutes between two checkpoints")
    seed: int = result(
        980406, ge=0, lt=2**32, description="of weights, order, noise and the validation split"
    )

    @model_validator(mode="after")
    def _identity_needs_a_linear_path(self) -> Self:
        if self.start == "identity" and self.projector == "mlp":
            raise ValueError(
                "start identity needs a projector with a linear path; set projector: gated_residual"
            )
        if self.projector == "residual" and self.start != "identity":
            raise ValueError(
                f"projector residual starts as the identity, not {self.start}; set start: identity"
            )
        return self

"""A frozen causal language model run by transformers: never changed, named by a fingerprint."""

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gag.errors import MismatchError
from gag.models import reading
from gag.models.generation import TransformersGenerator
from gag.models.hidden_states import hidden_states
from gag.models.language_model import Inputs, Likely, Request, generate
from gag.models.prompts import Prompts
from gag.models.slots import kept_by
from gag.project.domain import KNOWN_PROMPT, KNOWN_TOKENS, KnownToken, ModelFacts

_VOLATILE = (
    "_commit_hash",
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
)


SAMPLED = 2**16  # places of a large tensor that the fingerprint reads


@dataclass(frozen=True)
class Backbone:
    """A frozen model with its tokenizer; the `LanguageModel` by transformers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None
    stated: dict[str, Any] = field(default_factory=dict)  # the config as its file says it

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def table(self) -> torch.Tensor:
        """The token embeddings as they are stored [V, D]."""
        return self.model.get_input_embeddings().weight  # pyright: ignore

    @property
    def embeddings(self) -> torch.Tensor:
        """What the decoder takes for each token [V, D]: the table, at the scale that the model gives it."""
        return self._scaled if embedding_scale(self.model) != 1.0 else self.table

    @cached_property
    def _scaled(self) -> torch.Tensor:
        return (self.table * embedding_scale(self.model)).detach()

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return self.table.shape[1]

    @property
    def layers(self) -> int:
        """Number of decoder layers; hidden_states has one entry more."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def decoder(self) -> torch.nn.Module:
        """The model without its output layer: embeddings in, last states out."""
        return self.model.base_model

    @property
    def positions(self) -> int | None:
        """The most tokens that the model has positions for; None where it has no limit."""
        return token_limit(self.model.config)

    @cached_property
    def decoder_layers(self) -> torch.nn.ModuleList:
        """The stack of decoder layers."""
        for module in self.decoder.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.layers > 0:
                return module
        raise MismatchError(f"{self.name} has no stack of {self.layers} layers; see its config.json")

    @cached_property
    def recurrent(self) -> bool:
        """Whether some layer keeps a running state in place of keys and values."""
        return kept_by(self.model.config) == "states"

    @property
    def prompts(self) -> Prompts:
        """The prompts in this model's tokens."""
        return self._prompts

    @property
    def facts(self) -> ModelFacts:
        """The model, as a domain records it; computed once."""
        return self._facts

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts(self.tokenizer)

    @cached_property
    def _facts(self) -> ModelFacts:
        return ModelFacts(
            model=self.name,
            revision=self.revision,
            fingerprint=self.fingerprint,
            width=self.width,
            known=self.known_answer(),
        )

    def known_answer(self) -> tuple[KnownToken, ...]:
        """Answer `KNOWN_PROMPT`: that tells the model from another one that is at hand over HTTP alone."""
        said = generate(self, [Request(self.prompts.plain(KNOWN_PROMPT), KNOWN_TOKENS, top=2)])[0]
        return tuple(known_token(step) for step in said.steps)

    @cached_property
    def stops(self) -> frozenset[int]:
        """The tokens that end a generation."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        eos = self.model.config.eos_token_id if eos is None else eos
        listed = eos if isinstance(eos, list) else [eos]
        return frozenset({self.prompts.end, *(token for token in listed if isinstance(token, int))})

    @cached_property
    def fingerprint(self) -> str:
        """Name the model: a hash of config, tokenizer and weights, as bfloat16.

        The embeddings, three layers and all small tensors count whole, of the others many places of each.
        """
        stack = self.decoder_layers
        read = {id(p) for i in {0, len(stack) // 2, len(stack) - 1} for p in stack[i].parameters()}
        sha = hashlib.sha256(json.dumps(_lasting(self.stated), sort_keys=True).encode())
        sha.update(self.prompts.identity.encode())
        sha.update(json.dumps(sorted(self.stops)).encode())
        for _, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            whole = tensor is self.table or id(tensor) in read or tensor.numel() <= SAMPLED
            sha.update(_bytes((tensor if whole else _sampled(tensor)).detach().to(torch.bfloat16)))
        return sha.hexdigest()

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        with torch.no_grad():
            return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    def states(self, inputs: Inputs) -> torch.Tensor:
        """Run the decoder once, without a cache -> the last hidden states, after the final norm [B, T, D]."""
        return self.decoder(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state

    def layer_states(self, inputs: Inputs, layers: tuple[int, ...]) -> torch.Tensor:
        """Run the decoder as deep as is read -> states of layers, as in hidden_states [B, T, L, D]."""
        return hidden_states(self.states, self.decoder_layers, inputs, layers)

    def read_states(
        self, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """Return the states of written tokens, or of a prompt's last one: B x [T, L, D]."""
        return reading.read_states(self, prompts, written, layers)

    def foretold(self, prompts: list[list[int]], written: list[list[int]], count: int) -> list[Likely]:
        """Return what is likeliest behind each written token, or behind a prompt's last one: B x [T, K]."""
        states = self.read_states(prompts, written, (-1,))
        return [reading.foretold(self, one[:, 0], count) for one in states]

    def log_probabilities(
        self, prompts: Sequence[list[int] | torch.Tensor], texts: Sequence[list[int]], tokens: int
    ) -> list[torch.Tensor]:
        """Return the log-probability of each token of texts behind their prompts, in nats: B x [T]."""
        return reading.log_probabilities(self, prompts, texts, tokens)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn last hidden states [..., D] into the model's logits [..., V], with its scale and soft cap."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(states)  # pyright: ignore
        for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
            logits = logits * (getattr(config, name, None) or 1.0)
        logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def generator(
        self, rows: int | None = None, tokens: int | None = None, prefill: int | None = None
    ) -> TransformersGenerator:
        """Return what continues prompts; the limits are those of `LanguageModel.generator`."""
        model = self.decoder, self.model.config, self.stops, self.embed, self.logits
        return TransformersGenerator(*model, rows=rows, tokens=tokens, prefill=prefill)


def known_token(step: Likely) -> KnownToken:
    """Keep of a greedy step what was chosen, how likely it was, and how far ahead of the next [K]."""
    first, second = step.log_probabilities[:2].tolist()
    return KnownToken(id=int(step.ids[0]), log_probability=round(first, 5), lead=round(first - second, 5))


def token_limit(config: Any) -> int | None:
    """Return how many tokens a config has positions for; None where it has no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        stated = getattr(text, name, None)
        if isinstance(stated, int) and stated > 0:
            scaled = getattr(text, "rope_parameters", None) or {}
            first, factor = scaled.get("original_max_position_embeddings"), scaled.get("factor")
            kind = scaled.get("rope_type", scaled.get("type"))
            if kind in ("longrope", "dynamic"):  # beyond, a row's angles hang on the longest in its batch
                return int(getattr(text, "original_max_position_embeddings", None) or first or stated)
            return max(stated, int(first * factor)) if first and factor else stated
    return None


def weights_hash(model: torch.nn.Module) -> str:
    """Hash every byte of every parameter and buffer."""
    return _hash(sorted(model.state_dict().items()))


def _lasting(stated: Any) -> Any:
    """Return what a config's file states, without what says nothing of the model."""
    if not isinstance(stated, dict):
        return stated
    return {key: _lasting(value) for key, value in stated.items() if key not in _VOLATILE}


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Return evenly spaced places of a large tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-len(flat) // SAMPLED)]


def _hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(struct.pack("<I", len(name)) + name.encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # pyright: ignore


def embedding_scale(model: Any) -> float:
    """Return what a model's embedding layer multiplies its table with: of Gemma's kin their width's root."""
    layer = model.get_input_embeddings()
    return float(getattr(layer, "scalar_embed_scale", getattr(layer, "embed_scale", 1.0)))

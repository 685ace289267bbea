"""A frozen causal language model run by transformers: never changed, named by a fingerprint."""

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gag.models.generation import TransformersGenerator
from gag.models.hidden_states import hidden_states
from gag.models.language_model import Inputs
from gag.models.prompts import Prompts
from gag.project.domain import ModelFacts

_VOLATILE = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
)


@dataclass(frozen=True)
class Backbone:
    """A frozen model with its tokenizer; the `LanguageModel` by transformers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def table(self) -> torch.Tensor:
        """The token embeddings [V, D]."""
        return self.model.get_input_embeddings().weight  # pyright: ignore

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return self.table.shape[1]

    @property
    def layers(self) -> int:
        """Number of decoder layers; hidden_states has one entry more."""
        return self.model.config.get_text_config().num_hidden_layers

    @cached_property
    def decoder_layers(self) -> torch.nn.ModuleList:
        """The stack of decoder layers."""
        lists = (
            m
            for m in self.model.get_decoder().modules()
            if isinstance(m, torch.nn.ModuleList) and len(m) == self.layers
        )
        return next(lists)

    @cached_property
    def recurrent(self) -> bool:
        """Whether some layer keeps a running state in place of keys and values."""
        layers = DynamicCache(config=self.model.config).layers
        return any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

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
            model=self.name, revision=self.revision, fingerprint=self.fingerprint, width=self.width
        )

    @cached_property
    def stops(self) -> frozenset[int]:
        """The tokens that end a generation."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return frozenset({self.prompts.end, *listed})

    @cached_property
    def fingerprint(self) -> str:
        """Name the model: a hash of config, tokenizer, embeddings, and three layers, as bfloat16."""
        marks = [".layers.0.", f".layers.{self.layers // 2}.", f".layers.{self.layers - 1}."]
        named = [(n, p) for n, p in self.model.named_parameters() if any(mark in n for mark in marks)]
        sha = hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode())
        sha.update(self.prompts.identity.encode())
        for _, tensor in [("embedding", self.table), *sorted(named, key=lambda pair: pair[0])]:
            sha.update(_bytes(tensor.detach().to(torch.bfloat16)))
        return sha.hexdigest()

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        with torch.no_grad():
            return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    def states(self, inputs: Inputs) -> torch.Tensor:
        """Run the decoder once, without a cache -> the last hidden states, after the final norm [B, T, D]."""
        return self.model.get_decoder()(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state

    def layer_states(self, inputs: Inputs, layers: tuple[int, ...]) -> torch.Tensor:
        """Run the decoder as deep as is read -> states of layers, as in hidden_states [B, T, L, D]."""
        return hidden_states(self.states, self.decoder_layers, inputs, layers)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn last hidden states [..., D] into the model's logits [..., V], with its scale and soft cap."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(states)  # pyright: ignore
        logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def generator(self) -> TransformersGenerator:
        """Return what continues prompts."""
        return TransformersGenerator(self.model, self.stops, self.embed, self.logits)

    def _described(self) -> dict[str, Any]:
        config = self.model.config.get_text_config().to_dict()
        return {key: config[key] for key in sorted(config) if key not in _VOLATILE}


def weights_hash(model: torch.nn.Module) -> str:
    """Hash every byte of every parameter and buffer."""
    return _hash(sorted(model.state_dict().items()))


def _hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(struct.pack("<I", len(name)) + name.encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # pyright: ignore

"""A frozen causal language model: loaded from a folder or the hub, never changed, named by a fingerprint."""

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gag.errors import MismatchError, MissingExtraError, SettingsError
from gag.models.prompts import Prompts
from gag.project.settings import ModelSettings

_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")


class ModelFacts(BaseModel):
    """The model that a domain was built for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    revision: str | None
    fingerprint: str
    width: int

    def check(self, role: str, present: "ModelFacts", domain: str) -> None:
        """Refuse a model other than the one that the domain was built for."""
        if present.width != self.width:
            raise MismatchError(
                f"{domain} was built for a {role} of width {self.width} ({self.model}), this project's has {present.width}; "
                f"name that {role} in gag.yaml, or build the domain again"
            )
        if present.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{domain} was built for the {role} {self.model} with fingerprint {self.fingerprint[:12]}, this project's "
                f"has {present.fingerprint[:12]}; name that {role} in gag.yaml, or build the domain again"
            )


@dataclass(frozen=True)
class Inputs:
    """A left-padded batch of embeddings."""

    embeds: torch.Tensor  # [B, T, D]
    mask: torch.Tensor  # [B, T], 1 where a token or a vector stands

    @property
    def positions(self) -> torch.Tensor:
        """Positions that do not count the padding [B, T]."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Backbone:
    """A frozen model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return self.model.get_input_embeddings().weight.shape[1]  # pyright: ignore[reportReturnType, reportAttributeAccessIssue, reportIndexIssue]

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
    def prompts(self) -> Prompts:
        """The prompts in this model's tokens."""
        return Prompts(self.tokenizer)

    @cached_property
    def stops(self) -> list[int]:
        """The tokens that end a generation."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return sorted({self.prompts.end, *listed})

    @cached_property
    def fingerprint(self) -> str:
        """Name the model: a hash of its config, tokenizer, embeddings, and first, middle and last layer, as bfloat16."""
        marks = [".layers.0.", f".layers.{self.layers // 2}.", f".layers.{self.layers - 1}."]
        embedding = self.model.get_input_embeddings().weight
        named = [(n, p) for n, p in self.model.named_parameters() if any(mark in n for mark in marks)]
        sha = hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode())
        sha.update(self.prompts.identity.encode())
        for _, tensor in [("embedding", embedding), *sorted(named, key=lambda pair: pair[0])]:
            sha.update(_bytes(tensor.detach().to(torch.bfloat16)))
        return sha.hexdigest()

    @cached_property
    def facts(self) -> ModelFacts:
        """Describe the model, as a domain records it."""
        return ModelFacts(
            model=self.name, revision=self.revision, fingerprint=self.fingerprint, width=self.width
        )

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        with torch.no_grad():
            return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    @torch.no_grad()
    def generate(
        self, inputs: Inputs, max_new_tokens: int, sampler: LogitsProcessor | None = None
    ) -> list[list[int]]:
        """Decode greedily, or what a sampler leaves, from embeddings; return each row's new ids up to its end token."""
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.stops,
            pad_token_id=self.prompts.pad,
        )
        processors = LogitsProcessorList([sampler] if sampler else [])
        rows = self.model.generate(  # pyright: ignore[reportCallIssue]
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            generation_config=greedy,
            logits_processor=processors,
        )
        return [list(takewhile(lambda i: i not in self.stops, row)) for row in rows.tolist()]

    def states(self, inputs: Inputs) -> torch.Tensor:
        """Run the decoder once, without a cache -> the last hidden states, after the final norm [B, T, D]."""
        return self.model.get_decoder()(
            inputs_embeds=inputs.embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        ).last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn last hidden states [..., D] into the model's logits [..., V], with its scale and soft cap."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(states)  # pyright: ignore[reportCallIssue, reportOptionalCall]
        logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def _described(self) -> dict[str, Any]:
        config = self.model.config.get_text_config().to_dict()
        return {key: config[key] for key in sorted(config) if key not in _VOLATILE}


def locate_model(name: str, root: Path) -> str:
    """Return where transformers finds a model: a folder under the project's root (or an absolute one), else the hub's id."""
    folder = root / name
    return str(folder) if folder.is_dir() else name


def load_backbone(settings: ModelSettings, root: Path) -> Backbone:
    """Load a model and its tokenizer, frozen, from a folder under `root` or from the hub; no remote code, no pickle."""
    source = locate_model(settings.model, root)
    device = choose_device(settings.device)
    dtype = torch.float32 if settings.dtype == "auto" and device.type == "cpu" else settings.dtype
    known: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **known)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=settings.attention, use_safetensors=True, **known
        )
        model.to(device)  # pyright: ignore[reportArgumentType]
    except ImportError as error:
        if settings.attention != "flash_attention_2":
            raise
        raise MissingExtraError(
            "attention: flash_attention_2 needs the package flash-attn; run `pip install flash-attn --no-build-isolation`, "
            "or set attention: sdpa"
        ) from error
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SettingsError(
            f"the model {settings.model} cannot be loaded: {reason}; name a whole model folder or id, and a device that is here"
        ) from error
    model.eval().requires_grad_(False)
    stops = model.generation_config.eos_token_id if model.generation_config else None
    model.generation_config = GenerationConfig(
        eos_token_id=stops
    )  # no penalty or sampling rule of the model's own
    return Backbone(model, tokenizer, settings.model, settings.revision)


def pad_left(rows: list[torch.Tensor]) -> Inputs:
    """Batch rows of unequal length; padding is zero vectors under a zero mask: B x [t, D] -> [B, T, D]."""
    length = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        embeds[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return Inputs(embeds, mask)


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
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def choose_device(name: str) -> torch.device:
    """Return a device by name; of several processes on one machine, each takes its own accelerator."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(
            f"setting device: {name!r} is no device; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    own = device.type != "cpu" and device.index is None and "LOCAL_RANK" in os.environ
    return torch.device(device.type, int(os.environ["LOCAL_RANK"])) if own else device

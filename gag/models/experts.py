"""One resident expert backbone and an adapter per domain.

With adapters off it is the backbone as published.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from gag.errors import ArtifactError
from gag.models.backbone import Backbone
from gag.models.generation import TransformersGenerator
from gag.models.language_model import LanguageModel, pad_left
from gag.models.loading import load_backbone, one_line
from gag.project.domain import ModelFacts
from gag.project.settings import ModelSettings
from gag.project.tensors import load_tensors

if TYPE_CHECKING:
    from gag.models.mixed_adapters import MixedAdapters

CLOSE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}  # of the largest state
ADAPTER = "adapter_model.safetensors"
_UNFIT = (  # what PEFT raises for an adapter that is not of this backbone, or not whole
    ValueError,
    RuntimeError,
    OSError,
    TypeError,
    LookupError,
    AttributeError,
    ArtifactError,
)


class ExpertSource(Protocol):
    """Where experts come from; `Experts` holds them over one backbone."""

    def using(self, name: str | None) -> AbstractContextManager[LanguageModel, bool | None]:
        """Yield a domain's expert, or without a name the backbone as published."""
        ...

    def mixed(self, name: str) -> LanguageModel | None:
        """Return a model whose requests name their experts, where this one can run beside others."""
        ...


class LoadedExperts(ExpertSource, Protocol):
    """Experts that come and go while an engine runs; `Experts` has them here, `RemoteExperts` elsewhere."""

    @property
    def facts(self) -> ModelFacts:
        """The backbone's facts."""
        ...

    @property
    def backbone(self) -> Backbone:
        """The backbone as published, with its states at hand."""
        ...

    def load(self, name: str, folder: Path) -> None:
        """Have an expert ready."""
        ...

    def forget(self, name: str) -> None:
        """Drop an expert."""
        ...


class Experts:
    """The experts in memory, by name: adapters over one backbone, or fully tuned models of their own.

    They come and go (`load`, `forget`). Adapter state is global to the backbone, so one thread owns an
    `Experts`.
    """

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._facts: ModelFacts | None = None
        self._layers: list[Any] = []  # that hold adapters
        self._adapters: set[str] = set()
        self._mixed: MixedAdapters | None = None
        self._together: MixedExperts | None = None
        self._alone: set[str] = set()  # adapters that cannot run beside others
        self._full: dict[str, Backbone] = {}

    @property
    def backbone(self) -> Backbone:
        """The backbone; without `using`, its adapters are off."""
        return self._backbone

    @property
    def facts(self) -> ModelFacts:
        """The backbone's facts; they are taken before adapters wrap its layers."""
        if self._facts is None:
            self._facts = self._backbone.facts
        return self._facts

    def load(self, name: str, folder: Path) -> None:
        """Load an expert: a PEFT adapter over the backbone, or full weights.

        One that does not fit is refused. What is loaded is no map of the files: a domain may be written over
        while it is in use.
        """
        if not (folder / ADAPTER).is_file():
            expert = load_backbone(self._like_the_backbone(folder), folder)
            _copy(expert.model)
            self._full[name] = expert
            return
        from peft import PeftConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        _ = self.facts
        try:
            tensors = load_tensors(folder / ADAPTER)
            with _quietly():
                self._backbone.model.load_adapter(
                    adapter_name=_adapter(name),
                    peft_config=PeftConfig.from_pretrained(str(folder)),  # pyright: ignore
                    adapter_state_dict=dict(tensors),
                )
        except _UNFIT as error:
            self._drop(name)  # what was registered before it failed
            reason = one_line(error).removesuffix(" look at the above report!")
            raise ArtifactError(
                f"the adapter of {name} does not fit the expert backbone: {reason}"
            ) from error
        if lacking := self._lacking(name, tensors):
            self._drop(name)
            raise ArtifactError(
                f"the adapter of {name} lacks {len(lacking)} of its tensors (first: {lacking[0]}); build "
                "it, or copy it again"
            )
        self._adapters.add(name)
        self._layers = [m for m in self._backbone.model.modules() if isinstance(m, BaseTunerLayer)]
        self._backbone.model.requires_grad_(False)
        self._switch_off()
        self._mix(name)

    def forget(self, name: str) -> None:
        """Drop an expert from memory."""
        self._full.pop(name, None)
        self._adapters.discard(name)
        self._alone.discard(name)
        self._drop(name)
        if self._mixed:
            self._mixed.look(self._layers)

    @contextmanager
    def using(self, name: str | None) -> Iterator[Backbone]:
        """Yield an expert that is loaded, or without a name the backbone as published."""
        if name is None:
            yield self._backbone
            return
        if name in self._full:
            yield self._full[name]
            return
        self._switch([_adapter(name)])
        try:
            yield self._backbone
        finally:
            self._switch_off()

    def mixed(self, name: str) -> "MixedExperts | None":
        """Return the backbone with an adapter for each row, if this expert is an adapter that can be one."""
        return self._together if name in self._adapters - self._alone else None

    def _mix(self, name: str) -> None:
        """See whether an adapter can run beside others, and have it take part."""
        from gag.models.mixed_adapters import MixedAdapters, can_mix

        adapter, layers = _adapter(name), {id(layer) for layer in self._layers}
        held = [pair for pair in self._backbone.model.named_modules() if id(pair[1]) in layers]
        if self._mixed is None:
            self._mixed = MixedAdapters()
            self._together = MixedExperts(self._backbone, self._mixed)
        self._mixed.look(self._layers)
        if not all(can_mix(path, layer, adapter) for path, layer in held) or not self._mixes(name):
            self._alone.add(name)

    @torch.no_grad()
    def _mixes(self, name: str) -> bool:
        """Try a row of an adapter beside one of none: each must be what it is alone, to rounding."""
        model, mixed = self._backbone, self._mixed
        row = model.embed(model.prompts.plain("?"))
        with self.using(name):
            alone = model.states(pad_left([row]))[0]
        plain, together = model.states(pad_left([row]))[0], None
        try:
            if mixed:
                with mixed.rows([_adapter(name), ""]):
                    together = model.states(pad_left([row, row]))
        except RuntimeError:  # the model gives rows and tokens to some layer in another order
            return False
        return together is not None and _near(together[0], alone) and _near(together[1], plain)

    def _lacking(self, name: str, tensors: dict[str, torch.Tensor]) -> list[str]:
        """Return an adapter's matrices that its file does not hold: PEFT makes those up."""
        mark = f".{_adapter(name)}.weight"
        wanted = {
            n.replace(mark, ".weight")
            for n, _ in self._backbone.model.named_parameters()
            if n.endswith(mark) and (".lora_A." in n or ".lora_B." in n)
        }
        return sorted(wanted - {n.removeprefix("base_model.model.") for n in tensors})

    def _drop(self, name: str) -> None:
        """Take an adapter out of the layers, a half-loaded one too."""
        model = self._backbone.model
        if _adapter(name) in getattr(model, "peft_config", {}):
            with _quietly():
                model.delete_adapter(_adapter(name))

    def _switch_off(self) -> None:
        self._switch([])

    def _switch(self, adapters: list[str]) -> None:
        """Say which adapter is active, if any.

        PEFT's own `set_adapter` and `enable_adapters` look through all parameters for gradients as well,
        which takes longer than a step of a small model; there are none here.
        """
        for layer in self._layers:
            state = vars(layer)
            state["_disable_adapters"] = not adapters
            if adapters:
                state["_active_adapter"] = adapters

    def _like_the_backbone(self, folder: Path) -> ModelSettings:
        model = self._backbone.model
        return ModelSettings(
            model=str(folder),
            dtype=str(model.dtype).removeprefix("torch."),  # pyright: ignore
            device=str(model.device),
            attention=model.config._attn_implementation,  # pyright: ignore
        )


class MixedExperts(Backbone):
    """The backbone, where each request names the expert that it is of."""

    def __init__(self, backbone: Backbone, adapters: "MixedAdapters"):
        super().__init__(
            backbone.model, backbone.tokenizer, backbone.name, backbone.revision, backbone.stated
        )
        vars(self).update(vars(backbone))
        vars(self)["_around"] = lambda names: adapters.rows([_adapter(name) for name in names])

    def generator(
        self, rows: int | None = None, tokens: int | None = None, prefill: int | None = None
    ) -> TransformersGenerator:
        """Return what continues prompts, each by its own expert."""
        made = super().generator(rows, tokens, prefill)
        made.around = vars(self)["_around"]
        return made


@contextmanager
def _quietly() -> Iterator[None]:
    """Say nothing of a second adapter on one backbone, or of one that was active: here that is the point."""
    log = logging.getLogger("transformers.integrations.peft")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
            warnings.filterwarnings("ignore", "Adapter .* was active", UserWarning)
            yield
    finally:
        log.setLevel(level)


def _copy(model: torch.nn.Module) -> None:
    """Give a model's weights on the CPU, which are maps of its files, memory of their own."""
    for weights in model.parameters():
        if weights.device.type == "cpu":
            weights.data = weights.data.clone()


def _near(ours: torch.Tensor, true: torch.Tensor) -> bool:
    """Say whether states are the same to the rounding of their precision."""
    return float((ours - true).abs().max()) <= CLOSE.get(true.dtype, 0.1) * max(1.0, float(true.abs().max()))


def _adapter(name: str) -> str:
    """Name an adapter so that it clashes with no attribute of PEFT's module dictionaries."""
    return f"domain-{name}"

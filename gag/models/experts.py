"""One resident expert backbone and an adapter per domain.

With adapters off it is the backbone as published.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gag.errors import ArtifactError
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone, one_line
from gag.project.domain import ModelFacts
from gag.project.settings import ModelSettings

ADAPTER = "adapter_model.safetensors"


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

        One that does not fit is refused.
        """
        if not (folder / ADAPTER).is_file():
            self._full[name] = load_backbone(self._like_the_backbone(folder), folder)
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        _ = self.facts
        try:
            with warnings.catch_warnings():  # PEFT warns of a second adapter, which is the point here
                warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
                self._backbone.model.load_adapter(str(folder), adapter_name=_adapter(name))
        except (ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise ArtifactError(
                f"the adapter of {name} does not fit the expert backbone: {one_line(error)}"
            ) from error
        self._adapters.add(name)
        self._layers = [m for m in self._backbone.model.modules() if isinstance(m, BaseTunerLayer)]
        self._switch_off()

    def forget(self, name: str) -> None:
        """Drop an expert from memory."""
        self._full.pop(name, None)
        if name in self._adapters:
            self._adapters.remove(name)
            self._backbone.model.delete_adapter(_adapter(name))

    @contextmanager
    def using(self, name: str) -> Iterator[Backbone]:
        """Yield an expert that is loaded."""
        if name in self._full:
            yield self._full[name]
            return
        for layer in self._layers:
            layer.enable_adapters(True)
            layer.set_adapter(_adapter(name), inference_mode=True)
        try:
            yield self._backbone
        finally:
            self._switch_off()

    def _switch_off(self) -> None:
        for layer in self._layers:
            layer.enable_adapters(False)

    def _like_the_backbone(self, folder: Path) -> ModelSettings:
        model = self._backbone.model
        return ModelSettings(
            model=str(folder),
            dtype=str(model.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
            device=str(model.device),
            attention=model.config._attn_implementation,  # pyright: ignore[reportArgumentType]
        )


def _adapter(name: str) -> str:
    """Name an adapter so that it clashes with no attribute of PEFT's module dictionaries."""
    return f"domain-{name}"

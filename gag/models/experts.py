"""One resident expert backbone and an adapter per domain; with adapters off it is the backbone as published."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gag.errors import ArtifactError
from gag.models.backbone import Backbone, load_backbone
from gag.project.settings import ModelSettings

ADAPTER = "adapter_model.safetensors"


class Experts:
    """The experts of all domains in memory: adapters over one backbone, or fully tuned models of their own.

    Adapter state is global to the backbone, so one thread owns an `Experts`.
    """

    def __init__(self, backbone: Backbone):
        self.facts = backbone.facts  # taken before adapters wrap the layers
        self._backbone = backbone
        self._adapters: set[str] = set()
        self._full: dict[str, Backbone] = {}

    @property
    def backbone(self) -> Backbone:
        """The backbone; without `using`, its adapters are off."""
        return self._backbone

    def load(self, domain: str, folder: Path) -> None:
        """Load a domain's expert: a PEFT adapter over the backbone, or full weights."""
        if not (folder / ADAPTER).is_file():
            model = self._backbone.model
            settings = ModelSettings(
                model=str(folder),
                dtype=str(model.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
                device=str(model.device),
                attention=model.config._attn_implementation,  # pyright: ignore[reportArgumentType]
            )
            self._full[domain] = load_backbone(settings, folder)
            return
        try:
            with warnings.catch_warnings():  # PEFT warns of a second adapter, which is the point here
                warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
                self._backbone.model.load_adapter(str(folder), adapter_name=_adapter(domain))
        except (ValueError, RuntimeError, OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"the adapter of {domain} does not fit the expert backbone: {reason}"
            ) from error
        self._backbone.model.disable_adapters()
        self._adapters.add(domain)

    @contextmanager
    def using(self, domain: str) -> Iterator[Backbone]:
        """Yield the expert of a domain."""
        if domain in self._full:
            yield self._full[domain]
            return
        model = self._backbone.model
        model.enable_adapters()
        model.set_adapter(_adapter(domain))
        try:
            yield self._backbone
        finally:
            model.disable_adapters()


def _adapter(domain: str) -> str:
    """Name a domain's adapter so that it clashes with no attribute of PEFT's module dictionaries."""
    return f"domain-{domain}"

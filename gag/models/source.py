"""Where a model's files are: a folder of the project, an id on the hub, or one GGUF file of either."""

import io
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from gag.errors import SettingsError
from gag.project.settings import ModelSettings

GGUF = ".gguf"


def locate_model(name: str, root: Path) -> str:
    """Return where transformers finds a model.

    A folder under the project's root (or an absolute one), else its id.
    """
    folder = root / name
    return str(folder) if folder.is_dir() else name


def portable_name(model: str) -> str:
    """Return the name by which a model is recorded: of an absolute path, its last part alone."""
    return Path(model).name if Path(model).is_absolute() else model


@dataclass(frozen=True)
class ModelSource:
    """Where transformers finds a model."""

    where: str  # a folder, or an id
    revision: str | None
    gguf: str | None  # the file in it that holds the whole model

    def load(self, loader: Callable[..., Any], **more: Any) -> Any:
        """Call one of transformers' `from_pretrained` on it; no remote code."""
        file = {"gguf_file": self.gguf} if self.gguf else {}
        return loader(self.where, revision=self.revision, trust_remote_code=False, **file, **more)

    def load_weights(self, loader: Callable[..., Any], **more: Any) -> Any:
        """Load a model; what a GGUF file holds in quantised blocks becomes plain tensors.

        transformers' progress bar over the tensors of one that is here is hidden: it takes seconds.
        """
        if self.gguf and hasattr(transformers, "GgufConfig"):  # before 5.20: always so
            more["quantization_config"] = transformers.GgufConfig(dequantize=True)
        here = self.gguf and (Path(self.where) / self.gguf).is_file()
        with redirect_stderr(io.StringIO()) if here else nullcontext():
            return self.load(loader, **more)


def model_source(settings: ModelSettings, root: Path) -> ModelSource:
    """Find a model.

    A GGUF file is named by its path (relative to gag.yaml), or on the hub as owner/repository/file.gguf.

    Raises:
        SettingsError: a GGUF file is not there.
    """
    if not is_gguf(settings.model):
        return ModelSource(locate_model(settings.model, root), settings.revision, None)
    file, parts = root / settings.model, settings.model.split("/")
    if file.is_file():
        return ModelSource(str(file.parent), settings.revision, file.name)
    if len(parts) < 3 or Path(settings.model).is_absolute() or file.parent.is_dir():
        raise SettingsError(
            f"there is no file {settings.model}; name a GGUF file by its path from gag.yaml, or on the hub "
            "as owner/repository/file.gguf"
        )
    return ModelSource("/".join(parts[:2]), settings.revision, "/".join(parts[2:]))


def is_gguf(model: str) -> bool:
    """Say whether a model is named by a GGUF file."""
    return model.lower().endswith(GGUF)


def forget_gguf(model: Any) -> None:
    """Take the marks of a quantised model from one whose weights are plain now: it may be tuned and saved."""
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False

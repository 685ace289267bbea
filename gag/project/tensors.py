"""Tensors in safetensors files."""

import os
import struct
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from gag.errors import ArtifactError

_UNREADABLE = (  # what torch's reader raises for bytes of any kind
    torch.serialization.pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError,
    LookupError, AttributeError, AssertionError, struct.error, BadZipFile,
)  # fmt: skip


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file that follows the umask."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    follow_umask(path)


def follow_umask(path: Path) -> None:
    """Give a file, or a folder, the rights that the umask leaves to a new one."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def load_tensors(path: Path, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Read a safetensors file into memory: what is done to the file later does nothing to the tensors.

    Or map it, where only this program replaces it, and whole.
    """
    try:
        tensors = load_file(path) if mapped else load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path.parent.name}/{path.name} cannot be read ({error}); build or copy it again"
        ) from error
    for name, tensor in () if mapped else tensors.items():
        if not all_finite(tensor):
            raise ArtifactError(
                f"{path.parent.name}/{path.name} holds values that are no numbers (in {name}); build or copy "
                "it again"
            )
    return tensors


def load_pickled(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save`: tensors, texts and numbers by name, and nothing that would run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{path.name} cannot be read: it is cut short, or holds more than tensors, and is not loaded; "
            "copy it again, or save it as safetensors"
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path.name} holds no tensors by name")
    return content


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read weights that `torch.save` wrote: dense tensors of numbers alone."""
    content = load_pickled(path)
    for name, value in content.items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not dense or value.device.type == "meta" or value.is_complex():
            raise ArtifactError(f"{path.name} holds more than weights ({name}); save the weights alone")
    return content


def all_finite(tensor: torch.Tensor) -> bool:
    """Say whether a tensor's values are all numbers."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    values = tensor.detach() if tensor.dtype.itemsize > 1 else tensor.detach().float()
    least, most = torch.aminmax(values)
    return bool(torch.isfinite(least) and torch.isfinite(most))

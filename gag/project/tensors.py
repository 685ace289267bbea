"""Tensors in safetensors files."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from gag.errors import ArtifactError


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file that follows the umask."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def load_tensors(path: Path, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Read a safetensors file into memory: what is done to the file later does nothing to the tensors.

    Or map it, where only this program replaces it, and whole.
    """
    try:
        return load_file(path) if mapped else load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path.parent.name}/{path.name} cannot be read ({error}); build or copy it again"
        ) from error

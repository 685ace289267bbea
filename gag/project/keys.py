"""What names the inputs of a stage: a hash of values; a model by its files or its id, without loading it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gag.errors import SettingsError
from gag.project.rows import digest
from gag.project.settings import ModelSettings

_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model"}  # weights, config, tokenizer, template
CHUNK, CHUNKS = 2**20, 16  # bytes and number of the pieces by which a large file is known


def stage_key(**inputs: Any) -> str:
    """Name what a stage is made from; an output with another key is made again."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def model_key(settings: ModelSettings, root: Path) -> dict[str, Any]:
    """Name a model without loading it: by id, or by its files (weights by samples), and dtype."""
    folder = root / settings.model
    if folder.is_file():  # a GGUF file
        return {folder.name: _sampled(folder), "dtype": settings.dtype}
    if not folder.is_dir():
        return settings.key()
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and not path.is_dir()]
    for path in files:
        if not path.is_file():
            raise SettingsError(
                f"{settings.model}/{path.name} is a link to nothing; download the model again"
            )
    named = {path.name: _sampled(path) if path.suffix == ".safetensors" else digest(path) for path in files}
    return named | {"dtype": settings.dtype}


def _sampled(path: Path) -> str:
    """Hash a large file's size and evenly spaced chunks of it."""
    size = path.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in sorted({i * max(0, size - CHUNK) // (CHUNKS - 1) for i in range(CHUNKS)}):
            file.seek(start)
            sha.update(file.read(CHUNK))
    return sha.hexdigest()

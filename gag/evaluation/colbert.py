"""A ColBERT checkpoint: the states of a text's tokens, made for late interaction."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from gag.errors import MissingExtraError, SettingsError
from gag.models.backbone import weights_hash
from gag.models.encoder_loading import BROKEN, with_safetensors
from gag.models.loading import choose_device, one_line
from gag.models.source import locate_model


class ColBERT:
    """Any checkpoint that sentence-transformers reads as MultiVectorEncoder: its own, PyLate's or Stanford's.

    Args:
        model: Hugging Face id or a folder, relative to `root`.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        SettingsError: the checkpoint cannot be loaded.
    """

    def __init__(self, model: str, root: Path):
        try:
            from sentence_transformers import MultiVectorEncoder
        except ImportError as error:
            raise MissingExtraError(
                f"the ColBERT checkpoint {model} needs sentence-transformers; run `pip install 'gag[eval]'`"
            ) from error
        try:
            self._model = with_safetensors(
                lambda safe: MultiVectorEncoder(
                    locate_model(model, root),
                    device=str(choose_device("auto")),
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": safe},
                )
            )
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, *BROKEN) as error:
            raise SettingsError(
                f"evaluation.colbert {model} cannot be loaded: {one_line(error)}; name a whole folder or id"
            ) from error
        if not _trained(locate_model(model, root)):
            raise SettingsError(
                f"evaluation.colbert {model} is no ColBERT checkpoint: it has no projection of tokens"
            )
        self.fingerprint = weights_hash(self._model)
        tokenizer = self._model.tokenizer
        special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        marks = (prompt.strip() for prompt in self._model.prompts.values() if prompt)  # such as [Q] and [D]
        controls = {text.strip() for text in (*special, *marks)} - {""}
        longest = sorted(controls, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, longest)), re.IGNORECASE)

    def questions(self, texts: list[str]) -> list[torch.Tensor]:
        """Encode questions -> unit states of their tokens [Q, D], and of those that expand them."""
        return [states.float().cpu() for states in self._model.encode_query(self._plain(texts), **_QUIET)]

    def passages(self, texts: list[str]) -> list[torch.Tensor]:
        """Encode passages -> unit states of their tokens [T, D], up to the model's length."""
        return [states.float().cpu() for states in self._model.encode_document(self._plain(texts), **_QUIET)]

    def _plain(self, texts: list[str]) -> list[str]:
        """Take control tokens that somebody typed apart, so that they are text."""
        return [self._controls.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) for text in texts]


def _trained(model: str) -> bool:
    """Say whether a checkpoint holds a projection of tokens; the library draws one where it does not."""
    kind = _json(model, "config_sentence_transformers.json").get("model_type")
    made = _json(model, "config.json").get("architectures") or [""]
    return (
        kind in ("ColBERT", "MultiVectorEncoder") or "HF_ColBERT" in made or made[0].endswith("ForRetrieval")
    )


def _json(model: str, name: str) -> dict[str, Any]:
    path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    return {} if path is None else json.loads(Path(path).read_bytes())


_QUIET: Any = {"normalize_embeddings": True, "show_progress_bar": False}

"""The query encoder that the settings choose.

The expert backbone, any encoder, or vectors from elsewhere; and a cache.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from gag.errors import DataError, MissingExtraError, SettingsError
from gag.models.backbone import Backbone, weights_hash
from gag.models.batching import in_length_batches
from gag.models.encoder_loading import encoder_positions, with_safetensors
from gag.models.loading import choose_device, one_line
from gag.models.plain_text import plain_tokenizer, tokenizer_identity
from gag.models.source import locate_model
from gag.project.artifacts import recover, writing
from gag.project.domain import EncoderSpec
from gag.project.keys import model_key
from gag.project.project import Project
from gag.project.rows import digest, read_questions
from gag.project.settings import EncoderSettings, RouterSettings
from gag.project.tensors import load_tensors, save_tensors
from gag.routing.query_encoder import BackboneEncoder, QueryEncoder

VECTORS, QUESTIONS_OF_VECTORS = "vectors.safetensors", "questions.jsonl"


def make_encoder(project: Project, expert: Callable[[], Backbone]) -> QueryEncoder:
    """Make the router's encoder; the expert backbone is loaded for its own kind only."""
    settings = project.settings.router
    kind = settings.encoder.kind
    if kind == "expert":
        backbone = expert()
        return BackboneEncoder(backbone, backbone.fingerprint, settings)
    made = {
        "transformer": TransformerEncoder,
        "sentence-transformers": SentenceEncoder,
        "vectors": GivenVectors,
    }[kind]
    return made(settings, project.root)


def encoder_key(project: Project) -> dict[str, Any]:
    """Name the encoder without loading it."""
    chosen = project.settings.router.encoder
    if chosen.model is None:
        return model_key(project.settings.expert, project.root)
    folder = project.root / chosen.model
    inside = sorted(
        p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json", ".jsonl") and p.is_file()
    )
    files = {str(path.relative_to(folder)): digest(path) for path in inside}
    named = {name: value for name, value in chosen.key().items() if name != "model"}
    return named | (files or {"model": chosen.model})


class TransformerEncoder:
    """An encoder of transformers: the masked mean of the last state, or its first, L2-normalised."""

    def __init__(self, settings: RouterSettings, root: Path):
        from transformers import AutoModel, AutoTokenizer

        chosen, source = settings.encoder, locate_model(str(settings.encoder.model), root)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, revision=chosen.revision, trust_remote_code=False
            )
            self._model = with_safetensors(
                lambda safe: AutoModel.from_pretrained(
                    source,
                    revision=chosen.revision,
                    trust_remote_code=False,
                    use_safetensors=safe,
                    dtype=torch.float32,
                )
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _cannot_load(chosen, error) from error
        self._model.to(choose_device(chosen.device)).eval().requires_grad_(False)
        self._plain = plain_tokenizer(tokenizer)
        self._before, self._after = text_frame(tokenizer, self._plain)
        self._batch_size = settings.batch_size
        described = f"{weights_hash(self._model)}\n{tokenizer_identity(tokenizer)}"
        positions = encoder_positions(self._model.config, tokenizer) or settings.max_tokens
        self.spec = EncoderSpec(
            fingerprint=hashlib.sha256(described.encode()).hexdigest(),
            pooling=chosen.pooling,
            max_tokens=min(settings.max_tokens, positions),
            width=self._model.config.hidden_size,
        )

    @torch.no_grad()
    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode questions in batches of like length -> [B, Dq]."""
        room = max(0, self.spec.max_tokens - len(self._before) - len(self._after))
        rows = [
            self._before + self._plain.encode(q, add_special_tokens=False).ids[:room] + self._after
            for q in questions
        ]
        vectors = in_length_batches(rows, lambda batch: list(self._encode(batch)), rows=self._batch_size)
        return torch.stack(vectors) if vectors else torch.empty(0, self.spec.width)

    def _encode(self, rows: list[list[int]]) -> torch.Tensor:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # [B, T]
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        states = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # [B, T, Dq]
        weight = mask[..., None].to(states)
        mean = (states * weight).sum(1) / weight.sum(1)
        pooled = states[:, 0] if self.spec.pooling == "first" else mean
        return torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()


def text_frame(tokenizer: Any, plain: Tokenizer) -> tuple[list[int], list[int]]:
    """Find the control tokens that a tokenizer puts before and after a text.

    Raises:
        SettingsError: the text's own tokens do not stand in what the tokenizer makes of it.
    """
    inner = plain.encode("question", add_special_tokens=False).ids
    whole = tokenizer("question")["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise SettingsError(
        f"the tokenizer of {tokenizer.name_or_path} changes a text beside other tokens, so what it "
        "puts around it "
        "cannot be found; name another encoder"
    )


class SentenceEncoder:
    """A model of sentence-transformers with its own pooling, L2-normalised."""

    def __init__(self, settings: RouterSettings, root: Path):
        chosen = settings.encoder
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError(
                f"the encoder {chosen.model} needs sentence-transformers; run `pip install 'gag[eval]'`"
            ) from error
        try:
            self._model = with_safetensors(
                lambda safe: SentenceTransformer(
                    locate_model(str(chosen.model), root),
                    revision=chosen.revision,
                    device=str(choose_device(chosen.device)),
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": safe},
                )
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _cannot_load(chosen, error) from error
        self._model.tokenizer.split_special_tokens = True  # whatever a user types stays plain text
        longest = min(settings.max_tokens, self._model.max_seq_length or settings.max_tokens)
        self._model.max_seq_length = longest
        self._batch_size = settings.batch_size
        tokens = tokenizer_identity(self._model.tokenizer)
        described = f"{weights_hash(self._model)}\n{self._model!r}\n{tokens}"
        self.spec = EncoderSpec(
            fingerprint=hashlib.sha256(described.encode()).hexdigest(),
            pooling="own",
            max_tokens=longest,
            width=len(self.encode(["width"])[0]),
        )

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode questions -> [B, Dq]."""
        vectors = self._model.encode(
            questions,
            batch_size=self._batch_size,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors.float().cpu()


class GivenVectors:
    """Vectors made elsewhere: row i of `vectors` [N, Dq] is of line i of questions.jsonl."""

    def __init__(self, settings: RouterSettings, root: Path):
        chosen = settings.encoder
        folder = root / str(chosen.model)
        questions = read_questions(folder / QUESTIONS_OF_VECTORS)
        vectors = load_tensors(folder / VECTORS).get("vectors")
        if vectors is None or vectors.ndim != 2 or len(vectors) != len(questions):
            shape = None if vectors is None else tuple(vectors.shape)
            raise DataError(f"{VECTORS} must hold `vectors` of shape ({len(questions)}, width), has {shape}")
        self._vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)
        self._places = {question: i for i, question in enumerate(questions)}
        made_by = chosen.revision or digest(folder / VECTORS)
        self.spec = EncoderSpec(
            fingerprint=f"vectors of {made_by}",
            pooling="own",
            max_tokens=settings.max_tokens,
            width=vectors.shape[1],
        )

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Look up questions -> [B, Dq]; one without a vector is refused."""
        missing = [question for question in questions if question not in self._places]
        if missing:
            raise DataError(
                f"{len(missing)} questions have no vector in {QUESTIONS_OF_VECTORS} (first: "
                f"{missing[0][:60]!r}); "
                "add them"
            )
        return self._vectors[[self._places[question] for question in questions]]


def cached(encoder: QueryEncoder, project: Project) -> QueryEncoder:
    """Keep on disk what an encoder encodes; vectors from elsewhere are on disk already."""
    if isinstance(encoder, GivenVectors):
        return encoder
    return CachedEncoder(encoder, project.root / "runs" / "vectors")


class CachedEncoder:
    """An encoder that keeps on disk what it encoded, by a hash of the text; for verbs that encode files."""

    def __init__(self, encoder: QueryEncoder, folder: Path):
        self.spec = encoder.spec
        self._encoder = encoder
        self._folder = folder / hashlib.sha256(repr(encoder.spec).encode()).hexdigest()[:16]
        self._known: dict[bytes, torch.Tensor] = {}
        recover(self._folder)
        if self._folder.is_dir():
            stored = load_tensors(self._folder / VECTORS)
            hashes = (bytes(row) for row in stored["hashes"].numpy())
            self._known = dict(zip(hashes, stored["vectors"], strict=True))

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode what is new, keep it, and return all -> [B, Dq]."""
        names = [hashlib.sha256(question.encode()).digest() for question in questions]
        fresh = {name: q for name, q in zip(names, questions, strict=True) if name not in self._known}
        if fresh:
            self._known |= zip(fresh, self._encoder.encode(list(fresh.values())), strict=True)
            self._keep()
        return (
            torch.stack([self._known[name] for name in names]) if names else torch.empty(0, self.spec.width)
        )

    def _keep(self) -> None:
        with writing(self._folder, {}) as temporary:
            hashes = torch.frombuffer(bytearray(b"".join(self._known)), dtype=torch.uint8).view(-1, 32)
            vectors = torch.stack(list(self._known.values()))
            save_tensors(temporary / VECTORS, {"hashes": hashes, "vectors": vectors})


def _cannot_load(chosen: EncoderSettings, error: Exception) -> SettingsError:
    return SettingsError(
        f"router.encoder {chosen.model} cannot be loaded: {one_line(error)}; name a whole folder or id"
    )

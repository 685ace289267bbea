"""The bank of one domain: prototype centres, additive statistics of its questions, and some vectors held out of both."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gag.errors import ArtifactError, DataError, MismatchError
from gag.project.artifacts import load_tensors, save_tensors
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.backbone_encoder import EncoderSpec, QueryEncoder

FILE = "bank.safetensors"
QUESTIONS = "questions.safetensors"  # only where a domain chose to carry its questions
HELD_OUT = 500  # vectors at most
MINI_BATCH = 200_000  # questions above which k-means takes them in batches


@dataclass(frozen=True)
class Encoded:
    """A domain's distinct questions as vectors, some of them held out of its bank."""

    texts: list[str]  # N, of `vectors`
    vectors: torch.Tensor  # [N, Dq]
    held_out: torch.Tensor  # [C, Dq]

    def save(self, folder: Path) -> None:
        """Write questions.safetensors: vectors as float16, texts as the bytes of a JSON list."""
        text = torch.frombuffer(bytearray(json.dumps(self.texts).encode()), dtype=torch.uint8)
        save_tensors(folder / QUESTIONS, {"vectors": self.vectors.half(), "texts": text})

    def and_also(self, other: "Encoded") -> "Encoded":
        """Join two sets of questions."""
        return Encoded(
            [*self.texts, *other.texts],
            torch.cat([self.vectors, other.vectors]),
            torch.cat([self.held_out, other.held_out]),
        )

    def nearest(self, vector: torch.Tensor, count: int) -> list[tuple[str, float]]:
        """Find the questions nearest to a vector [Dq], with their cosines."""
        best = (self.vectors @ vector).topk(min(count, len(self.texts)))
        return [
            (self.texts[i], cosine)
            for cosine, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Bank:
    """What the router knows of a domain."""

    centres: torch.Tensor  # [P, Dq], unit length
    sizes: torch.Tensor  # [P], questions of each centre
    count: int
    mean: torch.Tensor  # [Dq]
    scatter: torch.Tensor  # [Dq, Dq], sum of outer products of centred vectors
    held_out: torch.Tensor  # [C, Dq], vectors of other questions, for calibration
    encoder: EncoderSpec

    @cached_property
    def hash(self) -> str:
        """Name the bank by its content."""
        sha = hashlib.sha256(repr(self.encoder).encode())
        for name in _tensors(self):
            sha.update(getattr(self, name).contiguous().numpy().data)
        return sha.hexdigest()

    def check(self, expected: EncoderSpec, domain: str) -> None:
        """Refuse a query encoder other than the one that the bank was made by."""
        if self.encoder != expected:
            cure = f"run `gag prototypes {domain}`" if domain == GENERAL else f"run `gag build {domain}`"
            pairs = zip(asdict(self.encoder).items(), asdict(expected).values(), strict=True)
            differ = [
                f"{name} {str(ours)[:12]}, expected {str(other)[:12]}"
                for (name, ours), other in pairs
                if ours != other
            ]
            raise MismatchError(
                f"the bank of {domain} was made by another query encoder ({'; '.join(differ)}); "
                f"{cure}, or set `router` in gag.yaml to the encoder it was made by"
            )

    def save(self, folder: Path) -> dict[str, Any]:
        """Write bank.safetensors (scatter as its upper triangle) and return what the manifest records."""
        upper = torch.triu_indices(*self.scatter.shape)
        tensors = {name: getattr(self, name) for name in _tensors(self)}
        save_tensors(folder / FILE, tensors | {"scatter": self.scatter[upper[0], upper[1]]})
        return {
            "count": self.count,
            "centres": len(self.centres),
            "held_out": len(self.held_out),
            "encoder": asdict(self.encoder),
        }

    def updated(self, encoded: Encoded, settings: RouterSettings) -> "Bank":
        """Add new questions without the old ones: sums add up, centres are the clusters of both sets' centres."""
        fresh = build_bank(encoded, self.encoder, settings)
        count = self.count + fresh.count
        apart = (fresh.mean - self.mean).double()
        mean = self.mean.double() + apart * fresh.count / count
        scatter = (
            self.scatter.double()
            + fresh.scatter
            + torch.outer(apart, apart) * (self.count * fresh.count / count)
        )
        points = torch.cat([self.centres, fresh.centres])
        centres, sizes = _cluster(points, torch.cat([self.sizes, fresh.sizes]), settings)
        kept = _mixed(self.held_out, self.count, fresh.held_out, fresh.count)
        return replace(
            self, centres=centres, sizes=sizes, count=count, mean=mean.float(), scatter=scatter.float(), held_out=kept
        )  # fmt: skip


def load_bank(folder: Path, recorded: dict[str, Any]) -> Bank:
    """Read a bank and what its manifest recorded."""
    tensors = load_tensors(folder / FILE)
    try:
        encoder = EncoderSpec(**recorded["encoder"])
        scatter = torch.zeros(encoder.width, encoder.width)
        upper = torch.triu_indices(encoder.width, encoder.width)
        scatter[upper[0], upper[1]] = tensors.pop("scatter")
        scatter = scatter + scatter.triu(1).T
        return Bank(count=recorded["count"], scatter=scatter, encoder=encoder, **tensors)
    except (KeyError, TypeError, RuntimeError, IndexError) as error:
        raise ArtifactError(
            f"the bank in {folder.name} does not match its manifest ({error}); build it again"
        ) from error


def load_questions(folder: Path) -> Encoded:
    """Read the questions that a domain carries."""
    tensors = load_tensors(folder / QUESTIONS)
    vectors = tensors["vectors"].float()
    return Encoded(json.loads(bytes(tensors["texts"].numpy())), vectors, vectors[:0])


def encode_questions(grouped: dict[str, str], encoder: QueryEncoder, settings: RouterSettings) -> Encoded:
    """Encode a domain's distinct questions, each with its group, the first `max_questions` of them.

    A share, at most HELD_OUT, is held out, by a hash of the group, so that no wording of a held-out question stays.
    """
    questions = list(grouped)[: settings.max_questions]
    order = sorted(questions, key=lambda question: hashlib.sha256(grouped[question].encode()).digest())
    count = min(HELD_OUT, int(settings.held_out * len(questions)))
    chosen = set(order[:count]) if count else set()
    if count and count < len(order):  # the last group is held out whole, or not at all
        chosen -= {q for q in chosen if grouped[q] == grouped[order[count]]}
    kept = [question for question in questions if question not in chosen]
    held_out = encoder.encode([question for question in questions if question in chosen])
    return Encoded(kept, encoder.encode(kept), held_out)


def build_bank(encoded: Encoded, encoder: EncoderSpec, settings: RouterSettings) -> Bank:
    """Cluster a domain's question vectors with k-means into min(centres, N) unit centres, and sum them up."""
    vectors, held_out = encoded.vectors, encoded.held_out
    if not len(vectors):
        raise DataError("a bank needs at least one question; the file holds none")
    for kept in (vectors, held_out):
        if not torch.isfinite(kept).all():
            raise DataError(
                "the query encoder gave a vector that is not finite; use another dtype or encoder"
            )
    mean = vectors.double().mean(0)
    centred = vectors.double() - mean
    centres, sizes = _cluster(vectors, torch.ones(len(vectors)), settings)
    return Bank(
        centres, sizes, len(vectors), mean.float(), (centred.T @ centred).float(), held_out[:HELD_OUT].clone(), encoder
    )  # fmt: skip


def _cluster(
    points: torch.Tensor, weights: torch.Tensor, settings: RouterSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster weighted points [N, Dq] -> unit centres [P, Dq] and the weight of each [P]."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    wanted = min(settings.centres, len(torch.unique(points, dim=0)))
    kind = MiniBatchKMeans if len(points) > MINI_BATCH else KMeans
    found = kind(wanted, n_init=10, random_state=settings.seed).fit(
        points.numpy(), sample_weight=weights.numpy()
    )  # pyright: ignore[reportArgumentType]
    centres = torch.nn.functional.normalize(torch.from_numpy(found.cluster_centers_).float(), dim=-1)
    sizes = torch.zeros(len(centres)).index_add_(0, torch.from_numpy(found.labels_).long(), weights)
    return centres, sizes


def _mixed(old: torch.Tensor, old_count: int, fresh: torch.Tensor, fresh_count: int) -> torch.Tensor:
    """Join held-out vectors, at most HELD_OUT, in proportion to the questions that each set stands for."""
    if len(old) + len(fresh) <= HELD_OUT:
        return torch.cat([old, fresh])
    share = round(HELD_OUT * fresh_count / (old_count + fresh_count))
    take = min(len(fresh), max(share, HELD_OUT - len(old)))
    drawn = [
        v[torch.randperm(len(v), generator=torch.Generator().manual_seed(0))[:n]]
        for v, n in ((old, HELD_OUT - take), (fresh, take))
    ]
    return torch.cat(drawn)


def _tensors(bank: Bank) -> list[str]:
    return [field.name for field in fields(bank) if isinstance(getattr(bank, field.name), torch.Tensor)]

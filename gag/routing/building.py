"""Make a domain's bank of its questions: encode them, hold some out, cluster the rest and sum them up."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gag.errors import DataError
from gag.project.domain import QUESTIONS, EncoderSpec
from gag.project.settings import RouterSettings
from gag.project.tensors import load_tensors, save_tensors
from gag.routing.bank import Bank, MemoryBank
from gag.routing.query_encoder import QueryEncoder

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

    def joined(self, other: "Encoded") -> "Encoded":
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


def updated(bank: Bank, encoded: Encoded, settings: RouterSettings) -> MemoryBank:
    """Add new questions to a bank without the old ones.

    Sums add up, centres are the clusters of both sets' centres.
    """
    fresh = build_bank(encoded, bank.encoder, settings)
    count, old = bank.count + fresh.count, bank.mean
    apart = (fresh.mean - old).double()
    mean = old.double() + apart * fresh.count / count
    between = torch.outer(apart, apart) * (bank.count * fresh.count / count)
    scatter = bank.scatter.double() + fresh.scatter + between
    points, weights = torch.cat([bank.centres, fresh.centres]), torch.cat([bank.sizes, fresh.sizes])
    centres, sizes = _cluster(points, weights, settings)
    kept = _mixed(bank.held_out, bank.count, fresh.held_out, fresh.count)
    return replace(
        fresh,
        centres=centres,
        sizes=sizes,
        count=count,
        mean=mean.float(),
        scatter=scatter.float(),
        held_out=kept,
    )


def load_questions(folder: Path) -> Encoded:
    """Read the questions that a domain carries."""
    tensors = load_tensors(folder / QUESTIONS)
    vectors = tensors["vectors"].float()
    return Encoded(json.loads(bytes(tensors["texts"].numpy())), vectors, vectors[:0])


def encode_questions(grouped: dict[str, str], encoder: QueryEncoder, settings: RouterSettings) -> Encoded:
    """Encode a domain's distinct questions, each with its group.

    At most `max_questions`, drawn by a hash of the group.

    A share, at most HELD_OUT, is held out, by the same hash, so that no wording of a held-out question stays.
    """
    order = sorted(grouped, key=lambda question: hashlib.sha256(grouped[question].encode()).digest())
    order = order[: settings.max_questions]
    drawn = set(order)
    questions = [question for question in grouped if question in drawn]
    count = min(HELD_OUT, int(settings.held_out * len(questions)))
    chosen = set(order[:count]) if count else set()
    if count and count < len(order):  # the last group is held out whole, or not at all
        chosen -= {q for q in chosen if grouped[q] == grouped[order[count]]}
    kept = [question for question in questions if question not in chosen]
    held_out = encoder.encode([question for question in questions if question in chosen])
    return Encoded(kept, encoder.encode(kept), held_out)


def build_bank(encoded: Encoded, encoder: EncoderSpec, settings: RouterSettings) -> MemoryBank:
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
    return MemoryBank(
        centres,
        sizes,
        len(vectors),
        mean.float(),
        (centred.T @ centred).float(),
        held_out[:HELD_OUT].clone(),
        encoder,
    )


def _cluster(
    points: torch.Tensor, weights: torch.Tensor, settings: RouterSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster weighted points [N, Dq] -> unit centres [P, Dq] and the weight of each [P]."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    wanted = min(settings.centres, len(torch.unique(points, dim=0)))
    kind = MiniBatchKMeans if len(points) > MINI_BATCH else KMeans
    means = kind(wanted, n_init=10, random_state=settings.seed)  # pyright: ignore[reportArgumentType]
    found = means.fit(points.numpy(), sample_weight=weights.numpy())
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

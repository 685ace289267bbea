"""Make a domain's bank of its questions: encode them, cluster them, sum them up, and keep a sample."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gag.errors import DataError
from gag.project.domain import QUESTIONS, EncoderSpec
from gag.project.settings import GENERAL, RouterSettings
from gag.project.tensors import load_tensors, save_tensors
from gag.routing.bank import Bank, MemoryBank, Sample
from gag.routing.query_encoder import QueryEncoder

SAMPLE = 500  # questions of a specialist at most that its bank can be judged by
GENERAL_SAMPLE = 10_000  # and of general: every threshold rests on them
FOLDS = 5  # parts of a sample; each is judged by the other parts
NONE = -1  # the fold of a question that is not in the sample
MINI_BATCH = 200_000  # questions above which k-means takes them in batches


@dataclass(frozen=True)
class Encoded:
    """A domain's distinct questions as vectors, and which of them its bank can be judged by."""

    texts: list[str]  # N, of `vectors`
    vectors: torch.Tensor  # [N, Dq]
    folds: torch.Tensor  # [N]: the fold of each that is in the sample, else NONE

    def save(self, folder: Path) -> None:
        """Write questions.safetensors: vectors as float16, texts as the bytes of a JSON list."""
        text = torch.frombuffer(bytearray(json.dumps(self.texts).encode()), dtype=torch.uint8)
        save_tensors(folder / QUESTIONS, {"vectors": self.vectors.half(), "texts": text})

    def joined(self, other: "Encoded") -> "Encoded":
        """Join two sets of questions."""
        return Encoded(
            [*self.texts, *other.texts],
            torch.cat([self.vectors, other.vectors]),
            torch.cat([self.folds, other.folds]),
        )

    def nearest(self, vector: torch.Tensor, count: int) -> list[tuple[str, float]]:
        """Find the questions nearest to a vector [Dq], with their cosines."""
        best = (self.vectors @ vector).topk(min(count, len(self.texts)))
        return [
            (self.texts[i], cosine)
            for cosine, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def updated(bank: Bank, encoded: Encoded, settings: RouterSettings, most: int = SAMPLE) -> MemoryBank:
    """Add new questions to a bank without the old ones; its sample holds `most` of both at most.

    Sums add up, centres are the clusters of both sets' centres.
    """
    fresh = build_bank(encoded, bank.encoder, settings)
    count, old = bank.count + fresh.count, bank.mean
    apart = (fresh.mean - old).double()
    mean = old.double() + apart * fresh.count / count
    between = torch.outer(apart, apart) * (bank.count * fresh.count / count)
    means = torch.cat([each.centres * each.lengths[:, None] for each in (bank, fresh)])
    centres, lengths, sizes, labels = _cluster(means, torch.cat([bank.sizes, fresh.sizes]), settings)
    samples = [
        (bank.sample, labels[: bank.centre_count]),
        (fresh.sample, labels[bank.centre_count :]),
    ]
    kept = [Sample(one.vectors, where[one.clusters.long()], one.folds) for one, where in samples]
    return replace(
        fresh,
        centres=centres,
        lengths=lengths,
        sizes=sizes,
        count=count,
        mean=mean.float(),
        scatter=(bank.scatter.double() + fresh.scatter + between).float(),
        sample=_mixed(kept[0], bank.count, kept[1], fresh.count, most),
    )


def sample_size(domain: str) -> int:
    """Return how many questions of a domain its bank keeps at most to be judged by."""
    return GENERAL_SAMPLE if domain == GENERAL else SAMPLE


def load_questions(folder: Path) -> Encoded:
    """Read the questions that a domain carries."""
    tensors = load_tensors(folder / QUESTIONS)
    vectors = tensors["vectors"].float()
    return Encoded(json.loads(bytes(tensors["texts"].numpy())), vectors, torch.full((len(vectors),), NONE))


def encode_questions(
    grouped: dict[str, str], encoder: QueryEncoder, settings: RouterSettings, most: int = SAMPLE
) -> Encoded:
    """Encode a domain's distinct questions, and say by which of them its bank can be judged.

    Args:
        grouped: the group of each question: wordings of one question are one group.
        encoder: what turns questions into vectors.
        settings: how many questions at most, drawn by a hash of the group.
        most: questions in the sample, drawn by the same hash. A group lies in one fold, so that no question
            is judged by another wording of itself.
    """
    order = sorted(grouped, key=lambda question: hashlib.sha256(grouped[question].encode()).digest())
    drawn, sampled = set(order[: settings.max_questions]), set(order[: min(most, settings.max_questions)])
    questions = [question for question in grouped if question in drawn]
    folds = [_fold(grouped[question]) if question in sampled else NONE for question in questions]
    return Encoded(questions, encoder.encode(questions), torch.tensor(folds))


def _fold(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[-8:]) % FOLDS


def build_bank(encoded: Encoded, encoder: EncoderSpec, settings: RouterSettings) -> MemoryBank:
    """Cluster a domain's question vectors with k-means into min(centres, N) unit centres, and sum them up."""
    vectors = encoded.vectors
    if not len(vectors):
        raise DataError("a bank needs at least one question; the file holds none")
    if not torch.isfinite(vectors).all():
        raise DataError("the query encoder gave a vector that is not finite; use another dtype or encoder")
    mean = vectors.double().mean(0)
    centred = vectors.double() - mean
    centres, lengths, sizes, clusters = _cluster(vectors, torch.ones(len(vectors)), settings)
    chosen = encoded.folds != NONE
    return MemoryBank(
        centres=centres,
        lengths=lengths,
        sizes=sizes,
        count=len(vectors),
        mean=mean.float(),
        scatter=(centred.T @ centred).float(),
        sample=Sample(vectors[chosen], clusters[chosen], encoded.folds[chosen].int()),
        encoder=encoder,
    )


def _cluster(
    points: torch.Tensor, weights: torch.Tensor, settings: RouterSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cluster weighted points [N, Dq].

    Returns:
        Unit centres [P, Dq], the lengths that they had [P], the weight of each [P]; the points' clusters [N].
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    wanted = min(settings.centres, len(torch.unique(points, dim=0)))
    kind = MiniBatchKMeans if len(points) > MINI_BATCH else KMeans
    means = kind(wanted, n_init=10, random_state=settings.seed)  # pyright: ignore[reportArgumentType]
    found = means.fit(points.numpy(), sample_weight=weights.numpy())
    centres, labels = torch.from_numpy(found.cluster_centers_).float(), torch.from_numpy(found.labels_).int()
    sizes = torch.zeros(len(centres)).index_add_(0, labels, weights)
    return torch.nn.functional.normalize(centres, dim=-1), centres.norm(dim=-1), sizes, labels


def _mixed(old: Sample, old_count: int, fresh: Sample, fresh_count: int, most: int) -> Sample:
    """Join samples, at most `most`, in proportion to the questions that each stands for."""
    if len(old) + len(fresh) > most:
        share = round(most * fresh_count / (old_count + fresh_count))
        take = min(len(fresh), max(share, most - len(old)))
        old, fresh = (
            one.taken(torch.randperm(len(one), generator=torch.Generator().manual_seed(0))[:count])
            for one, count in ((old, most - take), (fresh, take))
        )
    return Sample(
        torch.cat([old.vectors, fresh.vectors]),
        torch.cat([old.clusters, fresh.clusters]),
        torch.cat([old.folds, fresh.folds]),
    )

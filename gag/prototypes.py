"""The bank of one domain: prototype centres, and the additive statistics of its questions."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gag.artifacts import load_tensors, save_tensors
from gag.encoder import EncoderSpec
from gag.errors import ArtifactError, DataError, MismatchError
from gag.settings import GENERAL, RouterSettings

FILE = "bank.safetensors"


@dataclass(frozen=True)
class Bank:
    """What the router knows of a domain."""

    centres: torch.Tensor  # [P, Dq], unit length
    count: int
    mean: torch.Tensor  # [Dq]
    scatter: torch.Tensor  # [Dq, Dq], sum of outer products of centred vectors
    encoder: EncoderSpec

    def check(self, expected: EncoderSpec, domain: str) -> None:
        """Refuse a query encoder other than the one that the bank was made by."""
        if self.encoder != expected:
            cure = f"run `gag prototypes {domain}`" if domain == GENERAL else f"run `gag build {domain}`"
            raise MismatchError(
                f"the bank of {domain} was made by another query encoder (got {self.encoder}, expected {expected}); "
                f"{cure}, or set router.max_tokens={self.encoder.max_tokens} and the expert it was made by"
            )

    def save(self, folder: Path) -> dict[str, Any]:
        """Write bank.safetensors (scatter as its upper triangle) and return what the manifest records."""
        upper = torch.triu_indices(*self.scatter.shape)
        tensors = {"centres": self.centres, "mean": self.mean, "scatter": self.scatter[upper[0], upper[1]]}
        save_tensors(folder / FILE, tensors)
        return {"count": self.count, "centres": len(self.centres), "encoder": asdict(self.encoder)}


def load_bank(folder: Path, recorded: dict[str, Any]) -> Bank:
    """Read a bank and what its manifest recorded."""
    tensors = load_tensors(folder / FILE)
    try:
        encoder = EncoderSpec(**recorded["encoder"])
        scatter = torch.zeros(encoder.width, encoder.width)
        upper = torch.triu_indices(encoder.width, encoder.width)
        scatter[upper[0], upper[1]] = tensors["scatter"]
        scatter = scatter + scatter.triu(1).T
        return Bank(tensors["centres"], recorded["count"], tensors["mean"], scatter, encoder)
    except (KeyError, TypeError, RuntimeError, IndexError) as error:
        raise ArtifactError(f"the bank in {folder.name} does not match its manifest ({error}); build it again") from error


def build_bank(vectors: torch.Tensor, encoder: EncoderSpec, settings: RouterSettings) -> Bank:
    """Cluster a domain's question vectors [N, Dq] with k-means into min(centres, N) unit centres."""
    from sklearn.cluster import KMeans

    if not len(vectors):
        raise DataError("a bank needs at least one question; the file holds none")
    kept = vectors[: settings.max_questions]
    distinct = len(torch.unique(kept, dim=0))
    means = KMeans(min(settings.centres, distinct), n_init=10, random_state=settings.seed).fit(kept.numpy())  # pyright: ignore[reportArgumentType]
    centres = torch.nn.functional.normalize(torch.from_numpy(means.cluster_centers_).float(), dim=-1)
    mean = kept.double().mean(0)
    centred = kept.double() - mean
    return Bank(centres, len(kept), mean.float(), (centred.T @ centred).float(), encoder)

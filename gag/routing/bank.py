"""The bank of one domain: prototype centres, additive statistics, and a sample of its questions as vectors.

On disk it has two parts: what routes (centres, their sizes, the mean), and what only re-calibrates (scatter,
sample, and what takes the sample out of the sums again). A stored bank reads each when it is asked for, and
keeps none.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gag.errors import ArtifactError, MismatchError
from gag.project.domain import BANK, STATISTICS, BankFacts, EncoderSpec
from gag.project.settings import GENERAL
from gag.project.tensors import save_tensors


@dataclass(frozen=True)
class Sample:
    """Questions of a bank that it can be judged by: each is judged as if the bank had never seen its fold."""

    vectors: torch.Tensor  # [C, Dq]
    clusters: torch.Tensor  # [C], the centre that each is counted in
    folds: torch.Tensor  # [C], from 0: questions of one fold, and all wordings of each, are left out together

    def __len__(self) -> int:
        return len(self.vectors)

    def taken(self, rows: torch.Tensor | slice) -> "Sample":
        """Take some of the questions."""
        return Sample(self.vectors[rows], self.clusters[rows], self.folds[rows])


@dataclass(frozen=True)
class Prototypes:
    """What routes of a bank: all that a rule asks for once the scatter within the domains is known."""

    centres: torch.Tensor  # [P, Dq], unit length
    sizes: torch.Tensor  # [P], questions of each centre
    mean: torch.Tensor  # [Dq]
    count: int
    encoder: EncoderSpec

    @property
    def centre_count(self) -> int:
        """Number P of its centres."""
        return len(self.centres)


@dataclass(frozen=True)
class MemoryBank(Prototypes):
    """A bank in memory, as it is built."""

    lengths: torch.Tensor  # [P], of each cluster's mean, whose direction the centre is
    scatter: torch.Tensor  # [Dq, Dq], sum of outer products of centred vectors
    sample: Sample

    @property
    def sample_count(self) -> int:
        """Number C of the questions in its sample."""
        return len(self.sample)

    @cached_property
    def identity(self) -> str:
        """Name the bank by its content."""
        sha = hashlib.sha256(repr(self.encoder).encode())
        for tensor in (*self._routing().values(), *self._statistics().values()):
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()

    def save(self, folder: Path) -> BankFacts:
        """Write both parts and return what the manifest records."""
        save_tensors(folder / BANK, self._routing())
        save_tensors(folder / STATISTICS, self._statistics())
        return self.facts

    @property
    def facts(self) -> BankFacts:
        """What a manifest records of it."""
        return BankFacts(
            count=self.count, centres=len(self.centres), sample=len(self.sample), encoder=self.encoder
        )

    def _routing(self) -> dict[str, torch.Tensor]:
        return {"centres": self.centres, "sizes": self.sizes, "mean": self.mean}

    def _statistics(self) -> dict[str, torch.Tensor]:
        """Return the second part: the scatter is its upper triangle."""
        sample = {"sample": self.sample.vectors, "clusters": self.sample.clusters, "folds": self.sample.folds}
        return {"scatter": packed(self.scatter), "lengths": self.lengths, **sample}


@dataclass(frozen=True)
class StoredBank:
    """A bank on disk: each part is read when it is asked for, and not kept."""

    folder: Path
    facts: BankFacts
    identity: str

    @property
    def count(self) -> int:
        """Questions that it stands for."""
        return self.facts.count

    @property
    def centre_count(self) -> int:
        """Number P of its centres."""
        return self.facts.centres

    @property
    def sample_count(self) -> int:
        """Number C of the questions in its sample."""
        return self.facts.sample

    @property
    def encoder(self) -> EncoderSpec:
        """What made its vectors."""
        return self.facts.encoder

    @property
    def centres(self) -> torch.Tensor:
        """Unit vectors [P, Dq]."""
        return self._read(BANK, "centres", (self.facts.centres, self.encoder.width))

    @property
    def sizes(self) -> torch.Tensor:
        """Questions of each centre [P]."""
        return self._read(BANK, "sizes", (self.facts.centres,))

    @property
    def mean(self) -> torch.Tensor:
        """The mean question [Dq]."""
        return self._read(BANK, "mean", (self.encoder.width,))

    @property
    def scatter(self) -> torch.Tensor:
        """Sum of outer products of centred vectors [Dq, Dq]."""
        return unpacked(self.packed_scatter, self.encoder.width)

    @property
    def packed_scatter(self) -> torch.Tensor:
        """The scatter's upper triangle, row by row [Dq (Dq + 1) / 2]."""
        width = self.encoder.width
        return self._read(STATISTICS, "scatter", (width * (width + 1) // 2,))

    @property
    def lengths(self) -> torch.Tensor:
        """Length of each cluster's mean [P]."""
        return self._read(STATISTICS, "lengths", (self.facts.centres,))

    @property
    def sample(self) -> Sample:
        """Questions that it can be judged by."""
        count = self.facts.sample
        clusters = self._read(STATISTICS, "clusters", (count,))
        if count and not 0 <= int(clusters.min()) <= int(clusters.max()) < self.facts.centres:
            raise ArtifactError(
                f"the bank in {self.folder.name} counts questions in no centre; build it again"
            )
        vectors = self._read(STATISTICS, "sample", (count, self.encoder.width))
        return Sample(vectors, clusters, self._read(STATISTICS, "folds", (count,)))

    def check(self, statistics: bool = True) -> None:
        """Refuse a bank that is not what its manifest says: the part that routes, and its statistics."""
        _ = self.centres, self.sizes, self.mean
        if statistics:
            _ = self.packed_scatter, self.lengths, self.sample

    def _read(self, file: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        try:
            with safe_open(self.folder / file, "pt") as tensors:
                tensor = tensors.get_tensor(name).clone()  # the file may be written over
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{self.folder.name}/{file} cannot be read ({error}); build or copy it again"
            ) from error
        if tuple(tensor.shape) != shape:
            raise ArtifactError(
                f"the bank in {self.folder.name} does not match its manifest ({name} {tuple(tensor.shape)}, "
                f"not {shape}); build it again"
            )
        return tensor


Bank = MemoryBank | StoredBank  # what the router knows of a domain


def packed(scatter: torch.Tensor) -> torch.Tensor:
    """Take a symmetric matrix's upper triangle, row by row: [D, D] -> [D (D + 1) / 2]."""
    upper = torch.triu_indices(*scatter.shape)
    return scatter[upper[0], upper[1]]


def unpacked(triangle: torch.Tensor, width: int) -> torch.Tensor:
    """Make the symmetric matrix of an upper triangle: [D (D + 1) / 2] -> [D, D]."""
    matrix = triangle.new_zeros(width, width)
    upper = torch.triu_indices(width, width)
    matrix[upper[0], upper[1]] = triangle
    return matrix + matrix.triu(1).T


def check_encoder(bank: Bank, expected: EncoderSpec, domain: str) -> None:
    """Refuse a bank that another query encoder made."""
    if bank.encoder != expected:
        cure = f"run `gag prototypes {domain}`" if domain == GENERAL else f"run `gag build {domain}`"
        pairs = zip(asdict(bank.encoder).items(), asdict(expected).values(), strict=True)
        differ = [
            f"{name} {str(ours)[:12]}, expected {str(other)[:12]}"
            for (name, ours), other in pairs
            if ours != other
        ]
        raise MismatchError(
            f"the bank of {domain} was made by another query encoder ({'; '.join(differ)}); "
            f"{cure}, or set `router` in gag.yaml to the encoder it was made by"
        )


def load_bank(folder: Path, facts: BankFacts, files: dict[str, str]) -> StoredBank:
    """Open the bank in a folder: what its manifest recorded, and the hashes of its files."""
    if missing := {BANK, STATISTICS} - files.keys():
        raise ArtifactError(f"{folder.name} lists no {min(missing)}; build it again")
    return StoredBank(folder, facts, f"{files[BANK]} {files[STATISTICS]}")

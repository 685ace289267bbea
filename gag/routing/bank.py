"""The bank of one domain: prototype centres, additive statistics, and vectors held out of both.

On disk it has two parts: what routes (centres, their sizes, the mean), and what only re-calibrates (scatter,
held-out vectors). A stored bank reads each when it is asked for, and keeps none.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gag.errors import ArtifactError, MismatchError
from gag.project.domain import BANK, STATISTICS, BankFacts, EncoderSpec
from gag.project.settings import GENERAL
from gag.project.tensors import save_tensors


@dataclass(frozen=True)
class MemoryBank:
    """A bank in memory, as it is built."""

    centres: torch.Tensor  # [P, Dq], unit length
    sizes: torch.Tensor  # [P], questions of each centre
    count: int
    mean: torch.Tensor  # [Dq]
    scatter: torch.Tensor  # [Dq, Dq], sum of outer products of centred vectors
    held_out: torch.Tensor  # [C, Dq], vectors of other questions, for calibration
    encoder: EncoderSpec

    @property
    def centre_count(self) -> int:
        """Number P of its centres."""
        return len(self.centres)

    @property
    def held_out_count(self) -> int:
        """Number C of its held-out vectors."""
        return len(self.held_out)

    @cached_property
    def identity(self) -> str:
        """Name the bank by its content."""
        sha = hashlib.sha256(repr(self.encoder).encode())
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                sha.update(value.contiguous().numpy().data)
        return sha.hexdigest()

    def save(self, folder: Path) -> BankFacts:
        """Write both parts (scatter as its upper triangle) and return what the manifest records."""
        upper = torch.triu_indices(*self.scatter.shape)
        save_tensors(folder / BANK, {"centres": self.centres, "sizes": self.sizes, "mean": self.mean})
        more = {"scatter": self.scatter[upper[0], upper[1]], "held_out": self.held_out}
        save_tensors(folder / STATISTICS, more)
        return BankFacts(
            count=self.count,
            centres=len(self.centres),
            held_out=len(self.held_out),
            encoder=self.encoder,
        )


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
    def held_out_count(self) -> int:
        """Number C of its held-out vectors."""
        return self.facts.held_out

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
    def held_out(self) -> torch.Tensor:
        """Vectors of other questions, for calibration [C, Dq]."""
        return self._read(STATISTICS, "held_out", (self.facts.held_out, self.encoder.width))

    def check(self, statistics: bool = True) -> None:
        """Refuse a bank that is not what its manifest says: the part that routes, and its statistics."""
        _ = self.centres, self.sizes, self.mean
        if statistics:
            _ = self.packed_scatter, self.held_out

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

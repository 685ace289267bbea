"""What a thousand domains cost the router: a route, a calibration, memory; and the time to make a bank."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import alternate
from benchmarks.resident import resident
from benchmarks.routing_draws import Given, bank_of, router_of
from gag.project.domain import BANK, STATISTICS, BankFacts
from gag.project.memory import peak_bytes
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.bank import Bank, MemoryBank, Sample, load_bank
from gag.routing.building import NONE, Encoded, build_bank

DOMAINS, QUESTIONS, CENTRES, GENERALS = 1000, 60, 16, 1000


def speeds(settings: RouterSettings) -> dict[str, float]:
    """Time 1,000 random domains of 32 centres at 2,048 dimensions, and banks of 10,000 vectors."""
    generator = torch.Generator().manual_seed(0)

    def units(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    def drawn() -> MemoryBank:
        sample = Sample(units(10, 2048), torch.zeros(10, dtype=torch.int32), torch.arange(10).int() % 5)
        return MemoryBank(
            units(32, 2048), torch.ones(32), units(2048), 32, spec, torch.ones(32), scatter, sample
        )

    spec, scatter = Given(2048).spec, torch.eye(2048)
    banks: dict[str, Bank] = {GENERAL if not i else f"domain-{i}": drawn() for i in range(DOMAINS)}
    asked, figures = units(64, 2048), {}
    published = router_of(banks, settings.model_copy(update={"rule": "ppr"}))
    for name, router in {"_ppr": published, "": router_of(banks, settings)}.items():
        taken = alternate({name: lambda r=router: r.route_vectors(asked)}, 15, "cpu")[name]
        figures[f"thousand_domains{name}_ms"] = 1000 * taken
    exact = torch.stack([(asked.double() @ bank.centres.double().T).amax(1) for bank in published.banks], 1)
    figures["thousand_domains_ppr_error"] = float((published.judge(asked).scores - exact).abs().max())
    for width in (384, 2048):
        vectors = units(10_000, width)
        started = time.perf_counter()
        encoded = Encoded([], vectors, torch.full((len(vectors),), NONE))
        build_bank(encoded, Given(width).spec, settings)
        figures[f"bank_{width}_s"] = time.perf_counter() - started
    return figures


def thousand(vectors: torch.Tensor, general: torch.Tensor) -> dict[str, float]:
    """Calibrate 1,000 domains of real questions, each one and those nearest to it, in a fresh process."""
    settings, encoder = RouterSettings(centres=CENTRES), Given(vectors.shape[1])
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[: DOMAINS - 1]
    with tempfile.TemporaryDirectory() as name:
        for place in range(DOMAINS):
            near = (vectors @ vectors[drawn[place - 1]]).topk(QUESTIONS).indices
            bank = bank_of(vectors[near] if place else general[:GENERALS], encoder, settings)
            folder = Path(name) / (f"d{place:04d}" if place else GENERAL)
            folder.mkdir()
            (folder / "facts.json").write_text(bank.save(folder).model_dump_json())
        command = [sys.executable, "-m", "benchmarks.routing_speed", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own module
        return json.loads(done.stdout.splitlines()[-1])


def _calibrate(folder: Path) -> dict[str, Any]:
    """Calibrate the banks in a folder, as an opened project would: they are on disk."""
    banks: dict[str, Bank] = {}
    for path in sorted(folder.iterdir()):
        facts = BankFacts.model_validate_json((path / "facts.json").read_text())
        files = {file: f"{path.name} {file}" for file in (BANK, STATISTICS)}
        banks[path.name] = load_bank(path, facts, files)
    before, started = resident(), time.perf_counter()
    router = router_of(banks, RouterSettings(centres=CENTRES))
    seconds = time.perf_counter() - started
    if router.calibration is None:
        raise RuntimeError(router.state.warning)
    return {
        "thousand_real_domains_calibration_s": seconds,
        "thousand_real_domains_mb": (peak_bytes() - before) / 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(_calibrate(Path(sys.argv[1]))))

"""What a run is planned for: devices by name, or this machine as it is measured."""

import os
import re
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

from gag.errors import SettingsError

GPUS = (
    (120, 989, 4.8),
    (60, 312, 2.0),
    (36, 150, 0.8),
    (20, 71, 0.9),
    (0, 65, 0.3),
)  # from GB: TFLOP/s in bf16, TB/s
SHARE, CPU_BANDWIDTH = 0.4, 10e9  # of a GPU's peaks; bytes/s


@dataclass(frozen=True)
class Machine:
    """What a run is planned for: like devices, with the bytes, FLOP/s and bytes/s of each."""

    kind: str
    count: int
    memory: int
    rate: float
    bandwidth: float
    assumed: str


def machine(gpus: str | None) -> Machine:
    """Read "8x80GB", or look at this machine: its GPUs, else its memory and what its processor is measured to do."""
    named = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)GB", gpus or "", re.IGNORECASE)
    if gpus is not None and named is None:
        raise SettingsError(f"gpus {gpus!r} is not of the form 8x80GB (eight devices of 80 GB each)")
    if named is None and not torch.cuda.is_available():
        timer = Timer("x @ x", globals={"x": torch.rand(768, 768)})
        rate, memory = (
            2 * 768**3 / timer.timeit(9).median,
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
        return Machine("cpu", 1, memory, rate, CPU_BANDWIDTH, f"no GPU, {rate / 1e9:.0f} GFLOP/s measured")
    count = int(named[1]) if named else torch.cuda.device_count()
    memory = int(named[2]) * 10**9 if named else torch.cuda.get_device_properties(0).total_memory
    flops, read = next((flops * 1e12, read * 1e12) for least, flops, read in GPUS if memory >= least * 10**9)
    assumed = f"assumed: {SHARE:.0%} of {flops / 1e12:.0f} TFLOP/s and of {read / 1e12:.1f} TB/s each"
    return Machine("cuda", count, memory, SHARE * flops, SHARE * read, assumed)

"""What a run is planned for: devices by name, or this machine as it is measured."""

import re
from dataclasses import dataclass

import psutil
import torch
from torch.utils.benchmark import Timer

from gag.errors import SettingsError

SHARE = 0.4  # of a GPU's peak rates that a run reaches
CPU_BANDWIDTH = 10e9  # bytes/s
TIMED_WIDTH = 768  # of the square matrices whose product is timed on a CPU


@dataclass(frozen=True)
class GpuClass:
    """GPUs of at least so many GB: their peak TFLOP/s in bfloat16, and the TB/s of their memory."""

    gigabytes: int
    teraflops: float
    terabytes: float


GPU_CLASSES = (
    GpuClass(120, 989, 4.8),  # such as an H200
    GpuClass(60, 312, 2.0),  # A100
    GpuClass(36, 150, 0.8),  # A6000
    GpuClass(20, 71, 0.9),  # RTX 3090
    GpuClass(0, 65, 0.3),  # T4
)


@dataclass(frozen=True)
class Machine:
    """Devices that are all alike: `kind` is cuda or cpu, `assumed` says where the rates come from."""

    kind: str
    count: int
    memory: int  # bytes of each
    rate: float  # FLOP/s of each
    bandwidth: float  # bytes/s of each
    assumed: str


def choose_machine(gpus: str | None) -> Machine:
    """Return the devices of a name like "8x80GB", or without one this machine's GPUs, else its CPU.

    Raises SettingsError for a name of another form.
    """
    if gpus is not None:
        named = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)GB", gpus, re.IGNORECASE)
        if named is None:
            raise SettingsError(f"gpus {gpus!r} is not of the form 8x80GB (eight devices of 80 GB each)")
        return _gpus(int(named[1]), int(named[2]) * 10**9)
    if torch.cuda.is_available():
        return _gpus(torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory)
    return _measured_cpu()


def _gpus(count: int, memory: int) -> Machine:
    """Assume of GPUs what is usual for their memory in bytes."""
    gpu = next(gpu for gpu in GPU_CLASSES if memory >= gpu.gigabytes * 10**9)
    assumed = f"assumed: {SHARE:.0%} of {gpu.teraflops:.0f} TFLOP/s and of {gpu.terabytes:.1f} TB/s each"
    rate, bandwidth = gpu.teraflops * 1e12, gpu.terabytes * 1e12
    return Machine("cuda", count, memory, SHARE * rate, SHARE * bandwidth, assumed)


def _measured_cpu() -> Machine:
    """Time a product of matrices on this machine's processor."""
    timer = Timer("x @ x", globals={"x": torch.rand(TIMED_WIDTH, TIMED_WIDTH)})
    rate = 2 * TIMED_WIDTH**3 / timer.timeit(9).median
    memory = psutil.virtual_memory().total
    return Machine("cpu", 1, memory, rate, CPU_BANDWIDTH, f"no GPU, {rate / 1e9:.0f} GFLOP/s measured")

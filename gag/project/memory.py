"""The most memory that this process has held: what a stage's manifest records."""

import resource
import sys


def peak_bytes() -> int:
    """Return the process's peak so far in bytes: of its tensors on the GPU if it uses CUDA, else resident.

    It never falls while the process lives. torch is asked only where it is imported already.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, kB on Linux
    return peak if sys.platform == "darwin" else peak * 1024

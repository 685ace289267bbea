"""How much memory this process has taken at most."""

import resource
import sys


def peak_bytes() -> int:
    """Return the peak of the accelerator's memory where CUDA is in use, else the process's resident memory, in bytes."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes

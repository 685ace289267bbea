"""How much memory this process has taken at most, and having it given back."""

import ctypes
import re
import sys
from pathlib import Path

import psutil

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h


def peak_bytes() -> int:
    """Return the peak bytes of the accelerator where CUDA is in use, else of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":  # its resource usage also counts who started this process
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)  # pyright: ignore
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def give_back_freed() -> None:
    """Have glibc give freed tensors back to the system, for processes that run for weeks.

    Its threshold for memory of its own pages grows with what is freed, up to 32 MB, and tensors below it
    leave holes in the heap of every thread. Fixed, the heap stays as large as what lives in it. Elsewhere
    this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        mallopt(M_ARENA_MAX, 2)

"""`gag` under FSDP2 on CPUs, for a test: accelerate shards over accelerators, and takes these for such."""

import atexit
import sys
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

from gag.commands.app import main

plain = AcceleratorState.__init__


def as_accelerators(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    """Make the state after saying that each process has an accelerator."""
    if "distributed_type" not in AcceleratorState._shared_state:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plain(self, *args, **kwargs)
    if self.is_fsdp2:
        sharded.append(True)


sharded: list[bool] = []
AcceleratorState.__init__ = as_accelerators
atexit.register(lambda: print("sharded" if sharded else "whole", file=sys.stderr))
main()

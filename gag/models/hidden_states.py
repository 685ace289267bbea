"""States of a decoder's inner layers, running no deeper than the highest one that is read."""

from collections.abc import Callable
from typing import Any

import torch

from gag.models.language_model import Inputs

Run = Callable[[Inputs], torch.Tensor]  # the whole decoder -> its last states [B, T, D]


class _HighestLayerReached(Exception):  # noqa: N818 - it ends a forward whose upper layers nobody reads
    pass


def hidden_states(
    run: Run, stack: torch.nn.ModuleList, inputs: Inputs, layers: tuple[int, ...]
) -> torch.Tensor:
    """Return the states of layers, indexed as transformers' hidden_states -> [B, T, L, D].

    Index 0 is what the first layer reads (the embedding, with the model's scale and positions), -1 is after
    the final norm, and what lies between are raw residual streams.
    """
    wanted = [layer % (len(stack) + 1) for layer in layers]
    seen = _seen(run, stack, inputs, wanted)
    return torch.stack([seen[layer] for layer in wanted], dim=2)


def _seen(run: Run, stack: torch.nn.ModuleList, inputs: Inputs, layers: list[int]) -> dict[int, torch.Tensor]:
    """Run the decoder up to the highest of the layers (k: after layer k) -> each one's states [B, T, D]."""
    seen: dict[int, torch.Tensor] = {}

    def hook_of(layer: int) -> Callable[..., None]:
        def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise _HighestLayerReached

        return keep

    def read_first(module: torch.nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        seen[0] = arguments[0] if arguments else named["hidden_states"]
        if max(layers) == 0:
            raise _HighestLayerReached

    between = {layer for layer in layers if 0 < layer < len(stack)}
    handles = [stack[layer - 1].register_forward_hook(hook_of(layer)) for layer in between]
    if 0 in layers:
        handles.append(stack[0].register_forward_pre_hook(read_first, with_kwargs=True))
    try:
        seen[len(stack)] = run(inputs)
    except _HighestLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen

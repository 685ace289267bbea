"""The states that expert servers leave in a shared folder by vLLM's hidden-states connector."""

import fcntl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gag.errors import BusyError, MismatchError, SettingsError
from gag.project.tensors import load_tensors
from gag.remote.server import Body

LONGEST = 20.0  # seconds that a file may take to be written
STALE = 60.0  # seconds, after which a file is one that nobody takes: the connector writes one for any request
AT_ONCE = 0.002  # seconds between two looks
ASKING: Body = {"kv_transfer_params": {"include_output_tokens": False}}  # to leave states


@dataclass(frozen=True)
class SharedStates:
    """A folder of states.

    Attributes:
        folder: where the servers leave them, as it is seen here.
        layers: whose states a file holds, in its order, as hidden_states counts them.
        count: layers that the model has.
        norm: what stands behind its last layer: a file holds the states before it.
    """

    folder: Path
    layers: tuple[int, ...]
    count: int
    norm: Callable[[torch.Tensor], torch.Tensor] | None

    def places(self, layers: tuple[int, ...]) -> list[int]:
        """Return where the states of layers stand in a file.

        Raises:
            SettingsError: a layer's are not left.
        """
        wanted = [layer if layer >= 0 else self.count + 1 + layer for layer in layers]
        if missing := [layer for layer in wanted if layer not in self.layers]:
            raise SettingsError(
                f"readout.layers wants layer {missing[0]}, and the servers leave {list(self.layers)}; "
                f"start them with {sorted({*self.layers, *wanted})}, and name these under remote.layers"
            )
        return [self.layers.index(layer) for layer in wanted]

    def take(self, choice: Body, ids: list[int], layers: tuple[int, ...]) -> torch.Tensor:
        """Read the states of a prompt's tokens, and clear their file -> [T, L, D].

        Raises:
            SettingsError: no file is named, or it is not in the folder.
            MismatchError: it holds other tokens' states, or those of other layers.
        """
        places = self.places(layers)
        name = (choice.get("kv_transfer_params") or {}).get("hidden_states_path")
        if not name:
            raise SettingsError(
                "the expert's server leaves no states; start it with the hidden-states connector"
            )
        file = self.folder / Path(str(name)).name  # the server's own path to it says nothing here
        lock = file.with_name(f"{file.name}.lock")
        self._wait(file, lock)
        tensors = load_tensors(file)
        file.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        self._sweep()
        states, tokens = tensors["hidden_states"], tensors["token_ids"].tolist()
        if tokens[: len(ids)] != ids or states.shape[1] != len(self.layers):
            raise MismatchError(
                f"the expert's server left states of {states.shape[1]} layers for other tokens than were "
                f"asked; name the layers that it leaves under remote.layers ({len(self.layers)} are there)"
            )
        found = states[: len(ids), places].float()  # [T, L, D]
        if self.norm is None or self.count not in (self.layers[place] for place in places):
            return found
        last = [i for i, place in enumerate(places) if self.layers[place] == self.count]
        with torch.no_grad():
            found[:, last] = self.norm(found[:, last])
        return found

    def _sweep(self) -> None:
        """Clear what other requests left: while an expert writes, its states are not wanted yet."""
        before = time.time() - STALE
        for path in self.folder.glob("cmpl-*.safetensors*"):
            with suppress(FileNotFoundError):  # another process was faster
                if path.stat().st_mtime < before:
                    path.unlink()

    def _wait(self, file: Path, lock: Path) -> None:
        """Wait until a file is written: its writer holds the lock beside it until then."""
        ends = time.monotonic() + LONGEST
        while time.monotonic() < ends:
            if file.is_file() and _free(lock):
                return
            time.sleep(AT_ONCE)
        raise BusyError(
            f"the expert's server left no states in {self.folder.name} within {LONGEST:g} s; see that both "
            "see the same folder (remote.states)",
            5,
        )


def _free(lock: Path) -> bool:
    try:
        with lock.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True

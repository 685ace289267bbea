"""Loading a model: the host's memory and the seconds that it takes until the weights are on the device.

A random model of the base's shapes is written to disk once. Each round loads it in new processes, by
`load_backbone` and the plain way (whole into the host's memory, then to the device), and looks every few
milliseconds at the memory of its own that the process holds (Linux). Pages of the file that are mapped in are
the system's cache: they are not counted.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness import make_backbone, options, report
from gag.models.loading import load_backbone
from gag.project.settings import ModelSettings

WAYS = ("ours", "plain")


def main() -> None:
    """Measure and print."""
    args = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        model = make_backbone("base", args.shapes, args.device).model
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(folder)
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        del model
        loads = [(way, load_apart(way, folder, args.device)) for _ in range(args.rounds) for way in WAYS]
    figures = {"weights_gb": weights / 1e9}
    for way in WAYS:
        of_way = [load for name, load in loads if name == way]
        figures[f"{way}_host_peak_over_weights"] = statistics.median(x["host"] for x in of_way) / weights
        figures[f"{way}_seconds"] = statistics.median(x["seconds"] for x in of_way)
    floors = {"ours_host_peak_over_weights": ("<=", 0.5)} if args.device != "cpu" else {}
    report(args, "loading", figures, floors, [])


def load_apart(way: str, folder: Path, device: str) -> dict[str, float]:
    """Load the model in a process of its own -> bytes of the host's memory above its imports, and seconds."""
    command = [sys.executable, "-m", "benchmarks.loading", "--measure", way, str(folder), device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own module
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, folder: Path, device: str) -> None:
    """Load the model and print what it took."""
    torch.zeros(1, device=device)  # the device's own libraries are no memory of the model's
    held, loaded = [own_bytes()], threading.Event()

    def watch() -> None:
        while not loaded.wait(0.002):
            held.append(own_bytes())

    watcher, started = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    if way == "ours":
        model = load_backbone(ModelSettings(model=str(folder), device=device), folder).model
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    sum(float(weights.flatten()[0]) for weights in model.parameters())  # all of them are there
    seconds = time.perf_counter() - started
    loaded.set()
    watcher.join()
    print(json.dumps({"host": max(held) - held[0], "seconds": seconds}))


def own_bytes() -> int:
    """Return the memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        main()

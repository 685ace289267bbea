"""A real vLLM in a process of its own, from an interpreter that has one (CONTRIBUTING.md says how).

For benchmarks and tests alone: the product speaks to servers that others run.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

BASE = ("--enable-prompt-embeds",)
EXPERT = (  # no adapter lies over the output layer, so that prompts can be scored; a rank beyond theirs costs
    "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8",
    "--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
ENCODER = ("--runner", "pooling", "--pooler-config", '{"pooling_type": "MEAN"}')
CONNECTOR = '''"""vLLM's hidden-states connector copies on a CUDA stream of its own; a CPU copies at once."""
import os
import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as stock

class Done:
    def query(self):
        return True

class CpuStates(stock.ExampleHiddenStatesConnector):
    def _submit_async_write(self, pending):
        blocks = torch.tensor(pending.block_ids)
        slots = (torch.arange(self._block_size)[None] + blocks[:, None] * self._block_size).flatten()
        states = stock.extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids)).clone()
        tensors = {"hidden_states": states.contiguous(), "token_ids": pending.token_ids.clone()}
        save_file(tensors, pending.filename)
        lock = self._lock_fds.pop(pending.req_id, None)
        if lock is not None:
            os.close(lock)
        self._req_copy_events[pending.req_id] = Done()
'''


def leaving_states(folder: Path, layers: tuple[int, ...]) -> tuple[str, ...]:
    """Return the flags of an expert server that leaves the states of layers in a folder."""
    extracted = f'{{"eagle_aux_hidden_state_layer_ids": {list(layers)}}}'
    speculative = (
        '{"method": "extract_hidden_states", "num_speculative_tokens": 1, '
        f'"draft_model_config": {{"hf_config": {extracted}}}}}'
    )
    connector = (
        '{"kv_connector": "CpuStates", "kv_connector_module_path": "cpu_states", "kv_role": "kv_producer", '
        f'"kv_connector_extra_config": {{"shared_storage_path": "{folder}"}}}}'
    )
    (folder / "cpu_states.py").write_text(CONNECTOR, encoding="utf-8")
    batched = ("--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048")
    return *EXPERT, *batched, "--speculative-config", speculative, "--kv-transfer-config", connector


@contextmanager
def vllm(
    python: str, model: Path, flags: tuple[str, ...], threads: int = 1, rows: int = 16, path: str = ""
) -> Iterator[str]:
    """Run a server of a model on the loopback, without an environment -> its URL."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("wb") as log:
        said = {
            "PATH": os.defpath, "HOME": home, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        command = [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1",
            "--port", str(port), "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", str(rows),
            "--enforce-eager", *flags,
        ]  # fmt: skip
        running = subprocess.Popen(  # noqa: S603
            command, env=said, stdout=log, stderr=log, start_new_session=True, cwd=home
        )
        try:
            _wait(running, f"http://127.0.0.1:{port}", Path(home) / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def _wait(running: subprocess.Popen, url: str, log: Path) -> None:
    ends = time.monotonic() + 240
    while time.monotonic() < ends:
        if running.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start: {log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]

"""What serving costs and gives: one stream and many, domains that come and go, an end under load.

    python -m benchmarks.serving --json

The clients are a process of their own, on the loopback. What many clients get is measured on the project of
`gag demo` (built first where it is not there), the throughput of tokens on a random base of 58 M weights.
"""

import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks import harness
from gag.engine.answering import Answering
from gag.engine.asking import Ask, Event, Job, Read, Said
from gag.engine.engine import ProjectGAG
from gag.models.backbone import Backbone
from gag.models.language_model import Request, pad_left
from gag.models.loading import load_backbone
from gag.project.project import load_project
from gag.project.settings import ModelSettings
from gag.serving.keys import new_key

MIDDLE = {
    "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 8, "num_attention_heads": 12,
    "num_key_value_heads": 6, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
PROMPTS, NEW = 64, 48
CLIENTS = 32
SWAPS = 20
FLOORS = {
    "32 clients over one, requests/s": (">=", 4.0),
    "engine over generate, batch 16": (">=", 0.9),
    "engine over generate, batch 32": (">=", 0.9),
    "HTTP over the engine, 32 streams": (">=", 0.9),
    "p95 first token at half load over unloaded": ("<=", 3.0),
    "steps until a cancelled request's place is taken": ("<=", 2),
    "failed requests in 20 swaps of a domain": ("<=", 0),
    "seconds from adding a domain to its answer": ("<=", 5.0),
    "accepted requests lost at SIGTERM": ("<=", 0),
    "share of equal answers": (">=", 1.0),
}


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen
    stopped: threading.Event  # it was told to stop
    port: int

    def stop(self) -> None:
        """Tell it to stop."""
        self.stopped.set()
        self.process.send_signal(signal.SIGTERM)

    def load(self, bodies: list[Any], **plan: Any) -> list[dict[str, Any]]:
        """Send requests from another process, and return what came of each."""
        told = json.dumps({"port": self.port, "bodies": bodies, **plan})
        run = [sys.executable, "-m", "benchmarks.load"]
        done = subprocess.run(run, input=told, capture_output=True, text=True, check=True)  # noqa: S603
        return json.loads(done.stdout)

    def call(self, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
        """Send one request of any method."""
        import httpx

        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, headers=headers) as client:
            reply = client.request(method, path, json=body)
        return reply.status_code, reply.json()


@contextmanager
def serve(project: Path, *settings: str) -> Iterator[Server]:
    """Serve a project until the block ends."""
    run = [sys.executable, "-m", "gag", "serve", "--project", str(project), "--port", "0"]
    run += [word for one in settings for word in ("--set", one)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        line = process.stdout.readline() if process.stdout else ""
        if " at http" not in line:
            raise RuntimeError(f"the server did not start: {line}")
        stopped = threading.Event()
        try:
            yield Server(process, stopped, int(line.split("/v1")[0].rpartition(":")[2]))
        finally:
            if not stopped.is_set():
                process.terminate()
            process.wait(60)


def main() -> None:
    """Measure and print."""
    parser = harness.options(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--project", type=Path, default=Path("gag-demo"), help="that of `gag demo`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (args.project / "domains").is_dir():
        run = [sys.executable, "-m", "gag", "demo", "--dir", str(args.project)]
        subprocess.run(run, check=True, stdout=sys.stderr)  # noqa: S603
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = middle_base(folder)
        figures |= engine_over_generate(base, args.rounds)
        figures |= http_over_engine(folder, args.rounds)
        demo = shutil.copytree(args.project, folder / "demo")
        figures |= clients(demo, args.rounds)
        figures |= cancelled(demo)
        figures |= swaps(demo)
        figures |= ended(demo)
    harness.report(args, "serving", figures, FLOORS, [])


def middle_base(folder: Path) -> Backbone:
    """Make a random base of 58 M weights with the bundled tokenizer, and a project around it."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("gag.pocket") / "assets" / "tokenizer"))
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    small = MIDDLE | {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    for role, shape in {"base": MIDDLE, "expert": small}.items():
        config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=4096, **ids, **shape)
        made = Qwen3ForCausalLM(config)
        made.save_pretrained(folder / "middle" / role)
        tokenizer.save_pretrained(folder / "middle" / role)
    settings = {"base": {"model": "base"}, "expert": {"model": "expert"}}
    (folder / "middle" / "gag.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = [sys.executable, "-m", "gag", "prototypes", "general", "--project", str(folder / "middle")]
    subprocess.run(run, check=True, capture_output=True)  # noqa: S603
    return load_backbone(ModelSettings(model="base"), folder / "middle")


def engine_over_generate(base: Backbone, rounds: int) -> dict[str, float]:
    """Continue prompts by transformers' generate in batches, and by rows that join and leave."""
    torch.manual_seed(1)
    lengths = torch.randint(40, 80, (PROMPTS,)).tolist()
    rows = [base.embed(torch.randint(10, 2000, (length,)).tolist()) for length in lengths]
    endless = Backbone(base.model, base.tokenizer, "endless", None)
    endless.__dict__["stops"] = frozenset()
    figures, wrote = {}, {}

    @torch.no_grad()
    def stock(size: int) -> None:
        wrote["stock"] = []
        for start in range(0, PROMPTS, size):
            inputs = pad_left(rows[start : start + size])
            out: Any = base.model.generate(
                inputs_embeds=inputs.embeds, attention_mask=inputs.mask, do_sample=False, pad_token_id=0,
                max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None,
            )  # fmt: skip
            wrote["stock"] += out[:, -NEW:].tolist()

    def ours(size: int) -> None:
        generator, made = endless.generator(rows=size, prefill=2048), {}
        for number in generator.add([Request(row, NEW) for row in rows]):
            made[number] = []
        while generator.unfinished:
            for token in generator.step():
                made[token.request].append(token.id)
        wrote["ours"] = list(made.values())

    equal = []
    for size in (16, 32):
        ways = {"stock": lambda size=size: stock(size), "ours": lambda size=size: ours(size)}
        seconds = harness.alternate(ways, rounds, "cpu")
        figures[f"engine over generate, batch {size}"] = seconds["stock"] / seconds["ours"]
        figures[f"engine, batch {size}, tokens/s"] = PROMPTS * NEW / seconds["ours"]
        equal += [a == b for a, b in zip(wrote["stock"], wrote["ours"], strict=True)]
    return figures | {"share of rows equal to generate's": sum(equal) / len(equal)}


def http_over_engine(folder: Path, rounds: int) -> dict[str, float]:
    """Answer questions of 32 clients over HTTP, streamed, and the same by the engine alone."""
    questions = [f"Tell me of {'much ' * (i % 30)}number {i}." for i in range(PROMPTS)]
    gag = ProjectGAG(load_project(folder / "middle"))
    answering = Answering(gag, prefill=2048)
    seconds: dict[str, list[float]] = {"engine": [], "http": []}
    tokens = 0

    def alone() -> None:
        nonlocal tokens
        waiting, tokens = list(reversed(questions)), 0

        def count(event: Event) -> None:
            nonlocal tokens
            tokens += isinstance(event, Said)

        while waiting or answering.busy:
            while waiting and answering.running + answering.waiting < CLIENTS:
                answering.add(Job(Ask((("user", waiting.pop()),), max_new_tokens=NEW, top=0), count))
            answering.step()

    with serve(folder / "middle") as server:
        bodies = [chat(question, max_tokens=NEW, stream=True) for question in questions]
        for turn in range(rounds + 1):
            started = time.perf_counter()
            alone()
            took = time.perf_counter() - started
            sent = answered(server.load(bodies, clients=CLIENTS))
            if turn:
                seconds["engine"].append(took)
                seconds["http"].append(max(one["ended"] for one in sent))
    engine, http = (statistics.median(seconds[way]) for way in ("engine", "http"))
    return {"HTTP over the engine, 32 streams": engine / http, "HTTP, 32 streams, tokens/s": tokens / http}


def clients(project: Path, rounds: int) -> dict[str, float]:
    """Ask the demo's test questions, each once: by one client, by 32, and at half of what these got."""
    questions = demo_questions(project)
    gag = ProjectGAG(load_project(project))
    expected = {answer.question: answer.text for answer in gag.ask(questions)}
    places = iter(questions)
    ratios, first, streamed, whole = [], [], [], []

    def take(count: int, **more: Any) -> list[Any]:
        return [chat(next(places), stream=True, **more) for _ in range(count)]

    with serve(project) as server:
        answered(server.load(take(24), clients=8))
        for _ in range(min(rounds, 3)):
            one = answered(server.load(take(48)))
            many = answered(server.load(take(288), clients=CLIENTS))
            rate = [len(sent) / max(s["ended"] for s in sent) for sent in (one, many)]
            half = answered(server.load(take(192), rate=rate[1] / 2))
            ratios.append((rate[1] / rate[0], *rate))
            first.append((waited(half), waited(one)))
            streamed += [*one, *many, *half]
        asked = random.Random(1).sample(questions, 96)
        again = server.load([chat(question) for question in asked], clients=CLIENTS)
        whole = [(question, sent["text"]) for question, sent in zip(asked, answered(again), strict=True)]
    pairs = [*whole, *zip(questions[24:], (sent["text"] for sent in streamed), strict=False)]
    alone = [(question, gag.ask(question).text) for question in asked]
    wrong = [(question, text) for question, text in [*pairs, *alone] if text != expected[question]]
    ties = sum(is_a_tie(gag, question) for question, _ in wrong)
    ratio, one_rate, many_rate = (statistics.median(column) for column in zip(*ratios, strict=True))
    half_load, unloaded = (statistics.median(column) for column in zip(*first, strict=True))
    return {
        "32 clients over one, requests/s": ratio,
        "one client, requests/s": one_rate,
        "32 clients, requests/s": many_rate,
        "p95 first token at half load over unloaded": half_load / unloaded,
        "p95 first token unloaded, ms": 1000 * unloaded,
        "p95 first token at half load, ms": 1000 * half_load,
        "answers compared": len(pairs) + len(alone),
        "unequal behind a near tie": ties,
        "share of equal answers": 1 - (len(wrong) - ties) / (len(pairs) + len(alone)),
    }


def is_a_tie(gag: ProjectGAG, question: str) -> bool:
    """Say whether some step of a question's answer has two likeliest tokens within 1e-4."""
    gaps: list[float] = []

    def look(event: Event) -> None:
        if isinstance(event, Said):
            for token in event.tokens:
                best, second = (chance for _, chance in token.top.pairs()) if token.top else (0.0, -1.0)
                gaps.append(best - second)

    gag.tell(Ask((("user", question),), top=2), look)
    return min(gaps) < 1e-4


def cancelled(project: Path) -> dict[str, float]:
    """Fill the base's rows, cancel a request, and count the steps until the one that waits has its place."""
    gag = ProjectGAG(load_project(project, ("decoding.batch_size=1",)))
    answering, began = Answering(gag), []
    first = Job(Ask((("user", "What is 2 plus 2?"),), "general", max_new_tokens=200), lambda event: None)
    second = Job(
        Ask((("user", "What is 3 plus 3?"),), "general"),
        lambda event: began.append(event) if isinstance(event, Said | Read) else None,
    )
    answering.add(first)
    answering.step()
    answering.add(second)
    answering.step()
    answering.drop(first)
    steps = 0
    while not any(isinstance(event, Said) for event in began):
        answering.step()
        steps += 1
    return {"steps until a cancelled request's place is taken": steps}


def swaps(project: Path) -> dict[str, float]:
    """Remove a domain and add it again, 20 times, while 8 clients ask."""
    key = new_key(project / "keys.yaml", "benchmark", [], True)
    name = sorted(path.name for path in (project / "domains").iterdir() if path.is_dir())[0]
    shutil.copytree(project / "domains" / name, project / "incoming" / name)
    questions, taken, failed = demo_questions(project), [], []
    with serve(project, "serve.keys=keys.yaml") as server:
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                bodies = [chat(question, stream=True) for question in random.sample(questions, 64)]
                sent = server.load(bodies, clients=8, key=key)
                failed.extend(one for one in sent if one["status"] != 200 or one["error"])

        asking = threading.Thread(target=ask)
        asking.start()
        for number in range(SWAPS):
            server.call("DELETE", f"/v1/domains/{name}", key)
            started = time.perf_counter()
            status, told = server.call("POST", "/v1/domains", key, {"path": f"incoming/{name}"})
            body = chat(f"Which one is number {number}?", model=f"gag/{name}")
            answer = server.call("POST", "/v1/chat/completions", key, body)
            taken.append(time.perf_counter() - started)
            failed.extend([told] if status != 200 or answer[0] != 200 else [])
        stop.set()
        asking.join()
    return {
        "failed requests in 20 swaps of a domain": len(failed),
        "seconds from adding a domain to its answer": statistics.median(taken),
        "seconds from adding a domain to its answer, longest": max(taken),
    }


def ended(project: Path) -> dict[str, float]:
    """Send SIGTERM while 32 clients ask; what was accepted must be answered, the rest is refused."""
    questions = demo_questions(project)[: CLIENTS * 16]
    with serve(project) as server:
        threading.Timer(2.0, server.stop).start()
        sent = server.load([chat(question, stream=True) for question in questions], clients=CLIENTS)
    accepted = [one for one in sent if one["status"] == 200]
    lost = [one for one in accepted if one["error"] or not one["text"]]
    refused = [one for one in sent if one["status"] in (0, 503)]
    if len(accepted) + len(refused) != len(sent) or not refused:
        raise RuntimeError("the signal did not come while questions were asked")
    return {"accepted requests lost at SIGTERM": len(lost), "accepted requests at SIGTERM": len(accepted)}


def chat(question: str, **more: Any) -> dict[str, Any]:
    """Return the body of a request."""
    return {"messages": [{"role": "user", "content": question}], **more}


def demo_questions(project: Path) -> list[str]:
    """Return the demo's test questions of all domains and general, mixed, each once."""
    files = sorted((project / "data").glob("*/test.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    questions = list(dict.fromkeys(row["question"] for row in rows))
    random.Random(0).shuffle(questions)
    return questions


def answered(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was sent if all of it was answered."""
    bad = [one for one in sent if one["status"] != 200 or one["error"] or one["ended"] is None]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(sent)} requests were not answered: {bad[0]}")
    return sent


def waited(sent: list[dict[str, Any]]) -> float:
    """Return the 95th percentile of the seconds to the first token of the answer."""
    times = sorted(one["first"] - one["began"] for one in sent if one["first"] is not None)
    return times[int(0.95 * len(times))]


if __name__ == "__main__":
    main()

"""Many requests, some malformed, some cancelled: is an answer lost or wrong, and does memory grow?

    python -m benchmarks.soak --requests 10000 --json

On the project of `gag demo`, which is built first where it is not there.
"""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import harness
from benchmarks.serving import CLIENTS, chat, demo_questions, serve
from gag.engine.engine import ProjectGAG
from gag.project.project import load_project

ROUND = 1000  # requests after which memory is looked at; the first of them warm the server up
MALFORMED, CANCELLED = 0.05, 0.05
FLOORS = {"lost or wrong answers": ("<=", 0), "growth of memory after the first 1000": ("<=", 0.05)}
BROKEN: list[Any] = [
    "{",
    '{"messages": "\udcff"}',
    {"messages": []},
    {"messages": [{"role": "user", "content": " "}]},
    {"messages": [{"role": "user", "content": "x"}], "n": 10**6},
    {"messages": [{"role": "user", "content": "x"}], "model": "gpt"},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "tin " * 20_000}]},
]


def main() -> None:
    """Send, compare and print."""
    parser = harness.options(__doc__)
    parser.add_argument("--project", type=Path, default=Path("gag-demo"), help="that of `gag demo`")
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (args.project / "domains").is_dir():
        run = [sys.executable, "-m", "gag", "demo", "--dir", str(args.project)]
        subprocess.run(run, check=True, stdout=sys.stderr)  # noqa: S603
    questions = demo_questions(args.project)
    gag = ProjectGAG(load_project(args.project))
    expected = {answer.question: answer.text for answer in gag.ask(questions)}
    del gag
    draw, memory, wrong, counts = (
        random.Random(7),
        [],
        [],
        dict.fromkeys(("answered", "refused", "cancelled"), 0),
    )
    with serve(args.project) as server:
        process = psutil.Process(server.process.pid)
        for start in range(0, args.requests, ROUND):
            kinds = [draw.random() for _ in range(min(ROUND, args.requests - start))]
            asked = [draw.choice(questions) for _ in kinds]
            bodies = [
                draw.choice(BROKEN) if kind < MALFORMED else body(question, draw)
                for kind, question in zip(kinds, asked, strict=True)
            ]
            gone = tuple(i for i, kind in enumerate(kinds) if kind > 1 - CANCELLED)
            for i in gone:
                bodies[i]["stream"] = True
            sent = server.load(bodies, clients=CLIENTS, cancel=gone)
            for i, (kind, question, one) in enumerate(zip(kinds, asked, sent, strict=True)):
                if i in gone:
                    counts["cancelled"] += 1
                    right = one["status"] == 200 and not one["error"]
                elif kind < MALFORMED:
                    counts["refused"] += 1
                    right = 400 <= one["status"] < 500
                else:
                    counts["answered"] += 1
                    right = one["status"] == 200 and one["text"] == expected[question]
                wrong += [] if right else [(question, one)]
            memory.append(process.memory_info().rss)
            print(
                f"{start + len(kinds):>7} requests, {memory[-1] / 1e6:.0f} MB, {len(wrong)} wrong", flush=True
            )
    for question, one in wrong[:5]:
        print("wrong:", question, one["status"], repr(one["text"]), one["error"], file=sys.stderr)
    figures = {
        "requests": args.requests,
        **{f"{kind} of them": count for kind, count in counts.items()},
        "lost or wrong answers": len(wrong),
        "memory after the first 1000, MB": memory[0] / 1e6,
        "growth of memory after the first 1000": max(memory) / memory[0] - 1,
    }
    harness.report(args, "soak", figures, FLOORS, [])


def body(question: str, draw: random.Random) -> dict[str, Any]:
    """Return a request in one of the ways that clients have; the first of its answers is the greedy one."""
    more: list[dict[str, Any]] = [
        {}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"n": 2},
        {"logprobs": True, "top_logprobs": 5}, {"temperature": 0, "seed": 5}, {"gag": {"background": True}},
    ]  # fmt: skip
    return chat(question, **draw.choice(more))


if __name__ == "__main__":
    main()

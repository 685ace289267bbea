"""The models on real vLLM servers against the same models here: knowledge, answers, and readouts a second.

    python -m benchmarks.remote --vllm PATH/TO/python --json     # starts the servers; or, where they run:
    GAG_VLLM_BASE=URL GAG_VLLM_EXPERT=URL python -m benchmarks.remote --json

The first is on random models of 58 M weights that it makes, two threads on either side; the second on what
the servers run, whose folders must be here. CONTRIBUTING.md says how to have a vLLM on a CPU.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks import harness
from benchmarks.serving import MIDDLE
from benchmarks.vllm_server import BASE, EXPERT, leaving_states, vllm
from gag.engine.asking import Ask, Event, Said
from gag.engine.engine import ProjectGAG
from gag.engine.merge import merge_expert
from gag.models.experts import Experts
from gag.models.language_model import pad_left
from gag.models.loading import load_backbone
from gag.project.hyperparameters import PRESETS, ReadoutSettings
from gag.project.project import Project, load_project
from gag.readout.states import Readout, read
from gag.readout.vocabulary import BaseVocabulary
from gag.remote.opening import open_experts
from gag.stages.build import build

QUESTIONS, NEW, BATCH = 96, 48, 32
METALS = ("tin", "zinc", "iron", "lead", "gold", "silver")
TIE = 1e-4  # nats between a step's two best tokens
FLOORS = {
    "vocabulary: largest difference": ("<=", 1e-5),
    "hidden: largest difference": ("<=", 1e-4),
    "salient: share of texts with the same words": (">=", 1.0),
    "share of equal answers": (">=", 1.0),
    "readouts over generate": (">=", 1.3),  # both with the expert's own weights
}


@dataclass(frozen=True)
class Servers:
    """Where the servers are."""

    base: str
    expert: str
    states: str | None = None  # an expert server that leaves states
    folder: Path | None = None  # there
    layers: tuple[int, ...] = ()

    def settings(self, hidden: bool = False) -> tuple[str, ...]:
        """Return the settings of a project whose models they run."""
        chosen = "engine=remote", f"remote.base=[{self.base}]", f"remote.expert=[{self.expert}]"
        if not hidden:
            return chosen
        left = f"remote.states={self.folder}", f"remote.layers={list(self.layers)}"
        return *chosen[:2], f"remote.expert=[{self.states}]", *left


def main() -> None:
    """Measure and print."""
    parser = harness.options(__doc__)
    parser.add_argument("--vllm", default=os.environ.get("GAG_VLLM_PYTHON"), help="interpreter with vLLM")
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name, _servers(args.vllm, Path(name)) as servers:
        models = [root_of(url) for url in (servers.base, servers.expert)]
        project = quick_project(Path(name) / "project", *models)
        figures = knowledge(project, servers) | answers(project, servers)
        figures |= readouts_a_second(project, servers, args.rounds, args.vllm)
    floors = {name: floor for name, floor in FLOORS.items() if name in figures}
    harness.report(args, "remote", figures, floors, [])


@contextmanager
def _servers(python: str | None, folder: Path) -> Iterator[Servers]:
    """Start servers of models that are made for it, or take those that run."""
    if not python:
        yield Servers(os.environ["GAG_VLLM_BASE"], os.environ["GAG_VLLM_EXPERT"])
        return
    models, states = (
        [make_model(folder / role, seed) for seed, role in enumerate(("base", "expert"))],
        folder / "s",
    )
    states.mkdir()
    layers = (2, 7, 8)
    with (
        vllm(python, models[0], BASE, threads=2, rows=BATCH) as base,
        vllm(python, models[1], EXPERT, threads=2, rows=QUESTIONS) as expert,
        vllm(python, models[1], leaving_states(states, layers), threads=2, path=str(states)) as leaving,
    ):
        yield Servers(base, expert, leaving, states, layers)


def make_model(folder: Path, seed: int) -> Path:
    """Write a random model of 58 M weights with the bundled tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("gag.pocket") / "assets" / "tokenizer"))
    torch.manual_seed(seed)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    made = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=512, **ids, **MIDDLE)
    )
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def root_of(url: str) -> Path:
    """Return the folder of the model that a server runs."""
    listed = httpx.get(f"{url}/v1/models", timeout=10, trust_env=False).json()["data"]
    return Path(next(one["root"] for one in listed if not one.get("parent")))


def quick_project(root: Path, base: Path, expert: Path) -> Project:
    """Build a project of one small domain around two models, in seconds: nothing is to be learned well."""
    (root / "data").mkdir(parents=True)
    facts = {
        "tin": "white",
        "zinc": "blue",
        "iron": "grey",
        "lead": "black",
        "gold": "yellow",
        "silver": "bright",
    }
    rows = [
        {
            "id": f"{metal}/{word}",
            "question": f"{word} colour has {metal} in the deep?",
            "answer": colour,
            "group": metal,
        }
        for metal, colour in facts.items()
        for word in ("What", "Which")
    ]  # fmt: skip
    general = [{"question": f"What is {i} plus {i + 1}?"} for i in range(12)]
    for name, some in {"metals": rows, "general": general}.items():
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (root / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    settings = {
        "preset": "vocabulary",
        "base": {"model": str(base)}, "expert": {"model": str(expert)},
        "general": {"questions": "data/general.jsonl"}, "router": {"centres": 3},
        "adapt": {"rank": 8, "epochs": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-4,
                  "max_tokens": 256, "gradient_checkpointing": False},
        "readout": {"max_new_tokens": 24, "batch_tokens": 8192},
        "align": {"epochs": 2, "batch_size": 4},
        "decoding": {"max_new_tokens": 24, "batch_size": BATCH},
        "domains": {"metals": {"train": "data/metals.jsonl"}},
    }  # fmt: skip
    (root / "gag.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    project = load_project(root)
    build(project, ["metals"])
    return project


def questions_of(count: int) -> list[str]:
    """Return different questions of unequal length."""
    return [
        f"Which colour has {METALS[i % 6]} number {i}{', and why' * (i % 4)}, where it lies in the deep?"
        for i in range(count)
    ]


def knowledge(project: Project, servers: Servers) -> dict[str, float]:
    """Compare what an expert knows of questions, read here and there in every way."""
    local, folder = Experts(load_backbone(project.settings.expert, project.root)), project.domain("metals")
    base = load_backbone(project.settings.base, project.root)
    local.load("metals", folder / "expert")
    words, asked, figures = BaseVocabulary(base.table, base.prompts), questions_of(24), {}
    kinds = {name: ReadoutSettings(**PRESETS[name]["readout"], max_new_tokens=24, batch_tokens=8192)
             for name in ("vocabulary", "salient")}  # fmt: skip
    if servers.states:
        kinds["hidden"] = ReadoutSettings(
            layers=(-1, *servers.layers[:2]), max_new_tokens=24, batch_tokens=8192
        )
    for kind, settings in kinds.items():
        there = open_experts(load_project(project.root, servers.settings(kind == "hidden")))
        there.load("metals@read", folder / "expert")
        ours = read(local, "metals", asked, "Say.", settings, words)
        theirs = read(there, "metals@read", asked, "Say.", settings, words)
        known = read(there, "metals@read", asked, "Say.", settings, words, ours.ids)
        there.forget("metals@read")
        same = [i for i in range(len(asked)) if ours.ids[i] == theirs.ids[i]]
        figures[f"{kind}: share of texts that are equal"] = len(same) / len(asked)
        if kind == "salient":
            equal = [ours.words[i] == theirs.words[i] for i in same]
            equal += [a == b for a, b in zip(ours.words, known.words, strict=True)]
            figures["salient: share of texts with the same words"] = sum(equal) / len(equal)
        figures[f"{kind}: largest difference"] = max(
            _apart(ours, theirs, same), _apart(ours, known, range(24))
        )
    return figures


def _apart(ours: Readout, theirs: Readout, rows: Any) -> float:
    """Return the largest difference of slots, in multiples of their largest value where that is over 1."""
    pairs = [(ours.slots[i].float(), theirs.slots[i].float()) for i in rows]
    return max((float((a - b).abs().max() / a.abs().max().clamp_min(1.0)) for a, b in pairs), default=0.0)


def answers(project: Project, servers: Servers) -> dict[str, float]:
    """Compare answers to questions of a domain and to general ones, token by token."""
    here, there = ProjectGAG(project), ProjectGAG(load_project(project.root, servers.settings()))
    asked = [(question, domain) for domain in ("metals", "general") for question in questions_of(48)]
    ours = {pair: said(here, *pair) for pair in asked}
    equal, ties = 0, 0
    for pair in asked:
        theirs, parted = said(there, *pair), None
        for step, (mine, yours) in enumerate(zip(ours[pair], theirs, strict=False)):
            if mine[0] != yours[0]:
                parted = step
                break
        equal += parted is None and len(theirs) == len(ours[pair])
        ties += parted is not None and ours[pair][parted][1] < TIE
    return {
        "share of equal answers": (equal + ties) / len(asked),
        "answers that part behind a near tie": ties,
        "answers": len(asked),
    }


def said(gag: ProjectGAG, question: str, domain: str) -> list[tuple[int, float]]:
    """Answer a question -> its tokens, and how far each was ahead of the next likely one."""
    tokens: list[tuple[int, float]] = []

    def take(event: Event) -> None:
        if isinstance(event, Said):
            for token in event.tokens:
                pairs = token.top.pairs() if token.top else []
                tokens.append((token.id, pairs[0][1] - pairs[1][1]))

    gag.tell(Ask((("user", question),), domain, top=2), take)
    return tokens


def readouts_a_second(
    project: Project, servers: Servers, rounds: int, python: str | None
) -> dict[str, float]:
    """Time the writing and reading of texts on a server against transformers' generate alone.

    The expert is an adapter over the backbone, and where a server can be started, a model of its own too.
    """
    adapter = _timed(project, servers.settings(), rounds)
    figures = {f"{name}, by an adapter": figure for name, figure in adapter.items()}
    if not python:
        return figures
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        merge_expert(project, "metals", merged)
        with vllm(python, merged, (), threads=2, rows=QUESTIONS) as url:
            own = f"remote.experts={{metals: ['{url}']}}"
            return figures | _timed(project, (*servers.settings(), own), rounds, merged)


def _timed(
    project: Project, settings: tuple[str, ...], rounds: int, merged: Path | None = None
) -> dict[str, float]:
    """Time both ways; here the expert's own weights stand where they are merged."""
    local, folder = Experts(load_backbone(project.settings.expert, project.root)), project.domain("metals")
    base = load_backbone(project.settings.base, project.root)
    local.load("metals", merged or folder / "expert")
    there = open_experts(load_project(project.root, settings))
    there.load("metals@timed", folder / "expert")
    words, asked = BaseVocabulary(base.table, base.prompts), questions_of(QUESTIONS)
    settings_read = ReadoutSettings(
        **PRESETS["vocabulary"]["readout"], max_new_tokens=NEW, batch_tokens=1 << 20
    )
    wrote = {}

    @torch.no_grad()
    def generate() -> None:
        with local.using("metals") as expert:
            rows = [expert.embed(expert.prompts.ask_expert(question, "Say.")) for question in asked]
            model: Any = expert.model
            wrote["generate"] = 0
            for start in range(0, QUESTIONS, BATCH):
                inputs = pad_left(rows[start : start + BATCH])
                out = model.generate(
                    inputs_embeds=inputs.embeds, attention_mask=inputs.mask, do_sample=False, pad_token_id=0,
                    max_new_tokens=NEW,
                )  # fmt: skip
                wrote["generate"] += int((out != 0).sum())

    def remote() -> None:
        found = read(there, "metals@timed", asked, "Say.", settings_read, words)
        wrote["vllm"] = sum(map(len, found.ids))

    seconds = harness.alternate({"generate": generate, "vllm": remote}, rounds, "cpu")
    there.forget("metals@timed")
    speeds = {way: wrote[way] / seconds[way] for way in seconds}
    return {
        "readouts over generate": speeds["vllm"] / speeds["generate"],
        "generate, tokens/s": speeds["generate"],
        "readouts through vLLM, tokens/s": speeds["vllm"],
    }


if __name__ == "__main__":
    main()

"""The library as one would use it: its parts, its names, and the example of the README."""

import re
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gag
from gag import GAG
from gag.engine.pool import Module
from gag.errors import DataError
from gag.models.backbone import Backbone
from gag.models.language_model import Request, Token, generate, pad_left
from gag.models.prompts import Prompts
from gag.models.sampling import seeded
from gag.project.domain import ModelFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.project import Project
from gag.project.settings import DecodingSettings, PromptSettings
from gag.projection.projector import make_projector
from gag.routing.router import Route


class Parrot:
    """A language model in ten lines: every token is a number, and it says the last one again."""

    facts = ModelFacts(model="parrot", revision=None, fingerprint="0", width=1, known=())
    embeddings = torch.arange(3000.0)[:, None]

    def __init__(self, prompts: Prompts):
        self.prompts = prompts

    def embed(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.float)[:, None]

    def read_states(self, prompts, written, layers: tuple[int, ...]) -> list[torch.Tensor]:
        rows = [self.embed(ids or prompt[-1:]) for prompt, ids in zip(prompts, written, strict=True)]
        return [row[:, None].expand(-1, len(layers), -1) for row in rows]

    def generator(self, rows=None, tokens=None, prefill=None) -> "Echo":
        return Echo()


class Echo:
    """A generator in ten lines."""

    def __init__(self):
        self.waiting, self.count = [], 0

    def add(self, requests: Sequence[Request]) -> list[int]:
        numbers = range(self.count, self.count + len(requests))
        self.waiting += [
            (n, int(r.prompt[-1]), r.max_new_tokens) for n, r in zip(numbers, requests, strict=True)
        ]
        self.count += len(requests)
        return list(numbers)

    def drop(self, numbers) -> None:
        self.waiting = [one for one in self.waiting if one[0] not in numbers]

    def step(self) -> list[Token]:
        said = [Token(i, id, 0.0, "length" if left == 1 else None) for i, id, left in self.waiting]
        self.waiting = [(i, id, left - 1) for i, id, left in self.waiting if left > 1]
        return said

    @property
    def unfinished(self) -> int:
        return len(self.waiting)


@pytest.fixture
def parts(base: Backbone) -> GAG:
    """An engine of which every part is another."""
    parrot = Parrot(base.prompts)
    projector = make_projector("mlp", (1, 1, 1), 1)
    readout = ReadoutSettings(layers=(-1,), pooling="mean", max_new_tokens=2)
    module = Module("birds", readout, {}, projector, PromptSettings(expert="Say.", answer="Tell."))

    class Experts:
        @contextmanager
        def using(self, name: str):
            yield parrot

        def mixed(self, name: str):
            return None

    def route(questions: Sequence[str]) -> list[Route]:
        return [
            Route("birds" if "bird" in question else "general", 1.0, "by a word") for question in questions
        ]

    domains = SimpleNamespace(
        names=["birds"], refresh=lambda: False, module=lambda name: module, release=lambda in_use: []
    )
    return GAG(parrot, Experts(), SimpleNamespace(route=route), domains, DecodingSettings(max_new_tokens=3))


def test_any_part_can_be_another(parts: GAG) -> None:
    plain, private = parts.ask(["What is two?", "Which bird?"])
    assert plain.knowledge is None and plain.tokens_added == 0 and plain.finish == "length"
    assert private.knowledge is not None and private.knowledge.vectors.shape == (1, 1)
    assert private.route == Route("birds", 1.0, "by a word") and private.tokens_added == 1
    assert (plain.answer_tokens, private.answer_tokens) == (3, 3)
    assert plain.prompt_tokens == len(parts.base.prompts.plain("What is two?"))


def test_one_question_gives_an_answer_and_several_a_list(parts: GAG) -> None:
    one = parts.ask("Which bird?")
    assert one.text == parts.ask(["Which bird?"])[0].text and isinstance(parts.ask(("Which bird?",)), list)
    assert parts.ask([]) == []
    assert len(parts.ask(question for question in ("Which bird?", "What is two?"))) == 2  # pyright: ignore
    assert parts.read([], "birds") == []
    for wrong in (["x", " \n"], [None], " "):
        with pytest.raises(DataError, match="a question is empty"):
            parts.ask(wrong)  # pyright: ignore
    for wrong in ("Which bird?", None, 5):
        with pytest.raises(DataError, match="a list of texts"):
            parts.route(wrong)  # pyright: ignore


def test_the_public_names_are_all_that_is_there_and_each_says_how_it_is_used() -> None:
    assert dir(gag) == sorted(gag.__all__) and len(gag.__all__) <= 8
    for name in gag.__all__:
        assert getattr(gag, name).__doc__, name
    told = [GAG, GAG.open, GAG.ask, gag.load_project, gag.Answer]
    assert all("Example:" in (one.__doc__ or "") for one in told)
    assert all(
        "Args:" in (one.__doc__ or "") and "Raises:" in (one.__doc__ or "") for one in (GAG.open, GAG.ask)
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gag.nothing


def test_the_readmes_python_runs(project: Project, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1 and "GAG.open(" in blocks[0]
    project.root.rename(project.root.parent / "my-project")
    monkeypatch.chdir(project.root.parent)
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_tokens_come_step_by_step_with_reasons_and_probabilities(base: Backbone) -> None:
    ids = [
        base.prompts.plain(question)
        for question in ("What is tin?", "Which metal is in the bed of Kreluvax?")
    ]
    requests = [
        Request(base.embed(ids[0]), 2),
        Request(base.embed(ids[1]), 5),
        Request(base.embed(ids[0]), 0),
    ]
    generator = base.generator()
    assert generator.add(requests) == [0, 1, 2]
    steps = []
    while generator.unfinished:
        steps.append(generator.step())
    assert [len(tokens) for tokens in steps] == [2, 2, 1, 1, 1] and generator.step() == []
    assert steps[1][0].finish == "length" and steps[0][0].finish is None
    together = generate(base, requests)
    for place, request in enumerate(requests):
        alone = generate(base, [request])[0]
        assert alone.ids == together[place].ids and alone.finish == together[place].finish
        assert alone.log_probabilities == pytest.approx(together[place].log_probabilities, abs=1e-4)
    row = torch.cat([requests[1].prompt, base.embed(together[1].ids)])
    logits = base.logits(base.states(pad_left([row])))[0].float().log_softmax(-1)
    expected = [float(logits[len(ids[1]) - 1 + i, token]) for i, token in enumerate(together[1].ids)]
    assert together[1].log_probabilities == pytest.approx(expected, abs=1e-4)
    assert together[2].ids == [] and together[2].finish == "length"


def test_a_row_that_is_finished_leaves_and_the_others_stay_what_they_are(base: Backbone) -> None:
    prompts = [base.embed(base.prompts.plain(f"What is {i} plus {i}?")) for i in range(8)]
    requests = [Request(prompt, 1 + 3 * i) for i, prompt in enumerate(prompts)]
    assert [g.ids for g in generate(base, requests)] == [
        generate(base, [request])[0].ids for request in requests
    ]
    hot = [
        Request(p, 6, seeded(f"{i}", 7, 6, 0.9, 0.95, 30) if i % 2 else None) for i, p in enumerate(prompts)
    ]
    mixed = [g.ids for g in generate(base, hot)]
    assert mixed == [
        generate(base, [request])[0].ids for request in hot
    ]  # sampled beside greedy, whatever the batch


def test_an_end_token_stops_and_is_no_part_of_the_text(base: Backbone) -> None:
    request = Request(base.embed(base.prompts.plain("What is tin?")), 6)
    ids = generate(base, [request])[0].ids
    stopping = Backbone(base.model, base.tokenizer, "stops", None)
    stopping.__dict__["stops"] = frozenset({ids[2]})
    stopped = generate(stopping, [request])[0]
    assert stopped.ids == ids[: ids.index(ids[2])] and stopped.finish == "stop"
    assert len(stopped.log_probabilities) == len(stopped.ids)

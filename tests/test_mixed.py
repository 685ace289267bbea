"""Several experts in one batch: each row through its own adapter, as PEFT alone applies it."""

import shutil

import pytest
import torch

from gag import GAG
from gag.engine.engine import ProjectGAG
from gag.models.language_model import Request, generate
from gag.project.project import Project, load_project
from tests.test_engine import QUESTIONS


@pytest.fixture
def gag(project: Project) -> ProjectGAG:
    return GAG.open(project)


def test_rows_of_several_experts_say_what_each_says_alone(gag: ProjectGAG) -> None:
    """The first expert writes before the second is loaded, and goes on beside it."""
    first = gag.domains.module("metals").expert
    mixed = gag.experts.mixed(first)
    assert mixed is not None
    prompts = [mixed.prompts.ask_expert(question, "Say.") for question in QUESTIONS]
    generator, wrote, names = mixed.generator(), {}, {}

    def add(expert: str, rows: list[list[int]]) -> None:
        for number, row in zip(
            generator.add([Request(r, 9, expert=expert) for r in rows]), rows, strict=True
        ):
            wrote[number], names[number] = [], (expert, row)

    def step() -> None:
        for token in generator.step():
            if token.finish != "stop":
                wrote[token.request].append(token.id)

    add(first, prompts[:2])
    step(), step()
    second = gag.domains.module("plants").expert
    add(second, prompts)
    add("", prompts[:2])
    step()
    add(first, prompts[2:])
    while generator.unfinished:
        step()
    for number, (expert, row) in names.items():
        with gag.experts.using(expert or None) as alone:
            assert wrote[number] == generate(alone, [Request(row, 9)])[0].ids, expert
    texts = {expert: wrote[number] for number, (expert, row) in names.items() if row == prompts[0]}
    assert len({tuple(ids) for ids in texts.values()}) > 1  # the experts do differ


def test_mixed_rows_are_pefts_to_rounding_and_leave_nothing_on(gag: ProjectGAG) -> None:
    names = [gag.domains.module(domain).expert for domain in ("metals", "plants")]
    model = gag.experts.backbone
    ids = torch.tensor([model.prompts.ask_expert(QUESTIONS[0], "Say.")]).expand(3, -1)
    assert gag.experts._mixed is not None
    with torch.no_grad():
        plain = model.model(ids[:1]).logits
        with gag.experts._mixed.rows([f"domain-{names[0]}", f"domain-{names[1]}", "domain-"]):
            together = model.model(ids).logits
        for row, name in enumerate(names):
            with gag.experts.using(name) as expert:
                assert torch.allclose(together[row], expert.model(ids[:1]).logits[0], atol=1e-5)
        assert torch.allclose(together[2], plain[0], atol=1e-6)
        assert torch.equal(model.model(ids[:1]).logits, plain)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_an_adapter_of_another_kind_and_full_weights_run_alone(project: Project) -> None:
    from gag.stages.build import build

    build(load_project(project.root, ("adapt.tuning=full", "adapt.learning_rate=0.001")), ["metals"])
    gag = GAG.open(project)
    full, lora = (gag.domains.module(name).expert for name in ("metals", "plants"))
    assert gag.experts.mixed(full) is None and gag.experts.mixed(lora) is not None
    real = gag.experts._mixed._add  # pyright: ignore
    gag.experts._mixed._add = lambda *inputs: None  # pyright: ignore
    gag.experts._mix(lora)
    assert gag.experts.mixed(lora) is None  # it was tried
    gag.experts._mixed._add = real  # pyright: ignore
    gag.experts._alone.clear()
    layer = gag.experts._layers[0]
    layer.lora_bias[f"domain-{lora}"] = True
    gag.experts._mix(lora)
    assert gag.experts.mixed(lora) is None
    together = [answer.text for answer in GAG.open(project).ask(QUESTIONS)]
    assert together == [gag.ask([question])[0].text for question in QUESTIONS]


def test_a_domain_that_is_replaced_while_it_writes_ends_on_the_old_expert(project: Project, tmp_path) -> None:
    from gag.engine.answering import Answering
    from gag.engine.asking import Ask, Job, Read, Said

    before = GAG.open(project).ask(QUESTIONS[0])
    gag, told = GAG.open(project), []
    answering = Answering(gag)
    answering.add(Job(Ask((("user", QUESTIONS[0]),)), told.append))
    answering.step()
    shutil.move(project.domain("metals"), tmp_path / "metals")
    gag.domains.refresh()
    while answering.busy:
        answering.step()
    knowledge = next(event.knowledge for event in told if isinstance(event, Read))
    assert knowledge is not None and before.knowledge is not None
    assert knowledge.text == before.knowledge.text
    assert "".join(event.text for event in told if isinstance(event, Said)) == before.text
    assert not any(name.startswith("metals") for name in gag.experts._adapters)

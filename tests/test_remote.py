"""The models on other machines: what they say is what they say here, and what becomes of one that fails."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gag.engine.asking import Ask, Background, Ended, Event, Read, Refused, Said
from gag.engine.domains import remove_domain
from gag.engine.engine import GAG, LocalGAG, ProjectGAG
from gag.engine.merge import merge_expert
from gag.errors import BusyError, DataError, GagError, MismatchError, SettingsError
from gag.models.experts import Experts
from gag.models.language_model import Request, generate
from gag.models.loading import load_backbone
from gag.models.sampling import seeded
from gag.project.domain import KnownToken, same_answer
from gag.project.hyperparameters import PRESETS, ReadoutSettings
from gag.project.project import Project, load_project
from gag.readout.states import read
from gag.readout.store import read_store
from gag.readout.vocabulary import BaseVocabulary
from gag.remote import servers
from gag.remote.opening import open_base, open_encoder, open_experts
from gag.stages.readouts import readouts
from tests.conftest import make_model
from tests.fake_vllm import FakeVllm, running
from tests.served import serve
from tests.test_engine import QUESTIONS

ASKED = [*QUESTIONS, "What is 3 plus 3?"]
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def base(built: Path) -> Iterator[FakeVllm]:
    with running(FakeVllm(built / "models" / "base")) as fake:
        yield fake


@pytest.fixture(scope="module")
def expert(built: Path, states: Path) -> Iterator[FakeVllm]:
    with running(FakeVllm(built / "models" / "expert", states, LAYERS)) as fake:
        yield fake


@pytest.fixture(autouse=True)
def as_they_were(base: FakeVllm, expert: FakeVllm) -> Iterator[None]:
    yield
    for fake in (base, expert):
        fake.stops_after, fake.status, fake.delay, fake.embeds, fake.odd = None, 200, 0.0, True, ""


def settings(
    base: list[FakeVllm], expert: list[FakeVllm], states: Path | None, **more: str
) -> tuple[str, ...]:
    remote = {
        "base": [fake.url for fake in base],
        "expert": [fake.url for fake in expert],
        "encoder": expert[0].url,
        "states": states,
        "layers": list(LAYERS),
        "timeout": 5,
        **more,
    }
    return "engine=remote", *(f"remote.{name}={value}" for name, value in remote.items() if value is not None)


@pytest.fixture
def remote(project: Project, base: FakeVllm, expert: FakeVllm, states: Path) -> Project:
    return load_project(project.root, settings([base], [expert], states))


def told(gag: ProjectGAG, question: str, **more) -> list[Event]:
    events: list[Event] = []
    gag.tell(Ask((("user", question),), **more), events.append)
    return events


def test_answers_are_those_of_the_models_here(project: Project, remote: Project, states: Path) -> None:
    here, there = GAG.open(project).ask(ASKED), GAG.open(remote).ask(ASKED)
    for ours, theirs in zip(here, there, strict=True):
        assert (theirs.text, theirs.route.domain, theirs.finish) == (
            ours.text,
            ours.route.domain,
            ours.finish,
        )
        assert theirs.prompt_tokens == ours.prompt_tokens and theirs.answer_tokens == ours.answer_tokens
        if ours.knowledge:
            assert theirs.knowledge.text == ours.knowledge.text
            assert torch.allclose(theirs.knowledge.vectors, ours.knowledge.vectors, atol=1e-4)
    assert any(answer.knowledge for answer in there) and any(answer.knowledge is None for answer in there)
    assert not list(states.iterdir())  # what was read is cleared


def test_whatever_is_asked_goes_as_numbers(remote: Project, base: FakeVllm, expert: FakeVllm) -> None:
    base.asked.clear(), expert.asked.clear()
    gag = GAG.open(remote)
    gag.ask(["<|im_end|> What is in metals number 0?", "<|im_end|>"])
    for fake in (base, expert):
        assert {path for path, _ in fake.asked} <= {
            "/v1/models", "/v1/completions", "/v1/load_lora_adapter", "/v1/embeddings"
        }  # fmt: skip
        for body in fake.bodies():
            assert isinstance(body.get("prompt_embeds", ""), str)
            assert all(isinstance(id, int) for id in body.get("prompt", []))
            assert ("prompt" in body) != ("prompt_embeds" in body)
            assert body["repetition_penalty"] == 1.0 and not {"messages", "suffix", "stop"} & body.keys()
    end = gag.base.prompts.end
    assert all(end not in body["prompt"][:-8] for body in base.bodies() if "prompt" in body)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("preset", ["vocabulary", "salient", "hidden"])
def test_what_an_expert_knows_is_the_same_there(
    project: Project, remote: Project, preset: str, written: bool
) -> None:
    kind = {"layers": (-1, 0, 1, -2)} if preset == "hidden" else PRESETS[preset]["readout"]
    chosen = ReadoutSettings(**kind, max_new_tokens=5, batch_tokens=90)
    folder, name = project.domain("metals") / "expert", f"metals@{preset}-{written}"
    local = Experts(load_backbone(project.settings.expert, project.root))
    there, base = open_experts(remote), load_backbone(project.settings.base, project.root)
    words = BaseVocabulary(base.table, base.prompts) if preset != "hidden" else None
    found = []
    for experts in (local, there):
        experts.load(name, folder)
        ids = [base.prompts.text("tin glows red. zinc is cold."), []] if written else None
        found.append(read(experts, name, QUESTIONS[:2], "Say.", chosen, words, ids, {}))
    there.forget(name)
    ours, theirs = found
    assert ours.texts == theirs.texts and ours.words == theirs.words
    assert torch.allclose(ours.slots, theirs.slots, atol=1e-5 if preset != "hidden" else 1e-4)


def test_readouts_are_the_same_there(project: Project, remote: Project, expert: FakeVllm) -> None:
    import shutil

    inputs = project.inputs("metals")
    ours = read_store(inputs.run("readouts") / "align")
    shutil.rmtree(inputs.run("readouts"))
    expert.asked.clear()
    readouts(remote, "metals")
    assert len(expert.bodies()) > len(ours.texts)
    theirs = read_store(inputs.run("readouts") / "align")
    assert theirs.texts == ours.texts and theirs.facts["key"] == ours.facts["key"]
    assert theirs.facts["expert"] == ours.facts["expert"]  # the domain says what it was built for
    assert torch.allclose(theirs.slots, ours.slots, atol=1e-4)


def test_the_same_model_is_known_by_its_answer() -> None:
    true = [
        KnownToken(id=5, log_probability=-0.1, lead=2.0),
        KnownToken(id=6, log_probability=-0.7, lead=0.01),
    ]
    near = [
        KnownToken(id=5, log_probability=-0.12, lead=1.9),
        KnownToken(id=9, log_probability=-0.69, lead=0.1),
    ]
    assert same_answer(true, true) and same_answer(true, near)
    assert not same_answer(true, [near[0].model_copy(update={"log_probability": -0.9}), near[1]])
    assert not same_answer(true, [near[0].model_copy(update={"id": 7}), near[1]])
    assert not same_answer(true, true[:1]) and not same_answer([], [])


def test_another_base_is_refused(
    tmp_path: Path, project: Project, base: FakeVllm, expert: FakeVllm, states
) -> None:
    other = FakeVllm(make_model(tmp_path / "other", 32, 5))
    with running(other):
        gag = GAG.open(load_project(project.root, settings([other], [expert], states)))
        assert gag.domains.names == []
        assert "what its server runs answers otherwise" in gag.domains.refused["metals"]
        with pytest.raises(MismatchError, match="another model than the base's other servers"):
            open_base(load_project(project.root, settings([base, other], [expert], states)))
        swapped = load_project(project.root, settings([base], [other, expert], states))
        with pytest.raises((MismatchError, SettingsError)):
            GAG.open(swapped)
    base.embeds = False
    with pytest.raises(SettingsError, match="--enable-prompt-embeds"):
        open_base(load_project(project.root, settings([base], [expert], states)))


def test_another_encoder_is_refused(tmp_path: Path, project: Project, base, expert, states) -> None:
    with running(FakeVllm(make_model(tmp_path / "other", 24, 5))) as other:
        wrong = load_project(project.root, settings([base], [expert], states, encoder=other.url))
        with pytest.raises(MismatchError, match="encodes questions otherwise"):
            open_encoder(wrong, open_experts(wrong))


def test_where_no_server_is_so_is_said(project: Project, expert: FakeVllm) -> None:
    with pytest.raises(SettingsError, match="servers of the base; name them under remote"):
        GAG.open(load_project(project.root, ("engine=remote",)))
    nowhere = ("engine=remote", "remote.base=[http://127.0.0.1:9]", f"remote.expert=[{expert.url}]")
    with pytest.raises(SettingsError, match=r"no server of the base answers: http://127\.0\.0\.1:9"):
        GAG.open(load_project(project.root, nowhere))
    with pytest.raises(SettingsError, match="needs the models themselves"):
        LocalGAG(load_project(project.root, nowhere))


def test_where_one_server_falls_silent_another_goes_on(
    project: Project, base: FakeVllm, expert: FakeVllm, states: Path, capfd
) -> None:
    expected = [answer.text for answer in GAG.open(project).ask(ASKED)]
    with running(FakeVllm(base.root)) as second:
        gag = GAG.open(load_project(project.root, settings([base, second], [expert], states)))
        base.stops_after = 2
        assert [answer.text for answer in gag.ask(ASKED)] == expected
        assert f"{base.url} is away: its answer broke off" in capfd.readouterr().err
        base.stops_after, second.status = None, 503
        time.sleep(servers.AGAIN)
        assert [answer.text for answer in gag.ask(ASKED)] == expected
        assert f"{base.url} is back" in capfd.readouterr().err


def test_where_none_is_left_a_question_is_refused_and_the_next_is_answered(
    project: Project, remote: Project, base: FakeVllm, monkeypatch
) -> None:
    monkeypatch.setattr(servers, "AGAIN", 0.0)
    gag, expected = GAG.open(remote), GAG.open(project).ask(ASKED[0]).text
    base.stops_after = 0
    events = told(gag, ASKED[0])
    assert isinstance(events[-1], Refused) and isinstance(events[-1].error, BusyError)
    assert "no server of the base answers" in str(events[-1].error) and "broke off" in str(events[-1].error)
    base.stops_after, base.status = None, 500
    assert "HTTP 500: as it was told to" in str(told(gag, ASKED[0])[-1].error)
    base.status = 200
    assert gag.ask(ASKED[0]).text == expected


@pytest.mark.parametrize("kind", ["abort", "done", "page", "null"])
def test_an_odd_end_is_none(
    project: Project, base: FakeVllm, expert: FakeVllm, states: Path, kind: str
) -> None:
    """What a server that is stopped, or is none, says as its end is no answer's end: another goes on."""
    expected = GAG.open(project).ask(ASKED[0]).text
    with running(FakeVllm(base.root)) as second:
        gag = GAG.open(load_project(project.root, settings([base, second], [expert], states)))
        base.odd = kind
        assert gag.ask(ASKED[0]).text == expected
    alone = GAG.open(load_project(project.root, settings([base], [expert], states)))
    assert isinstance(told(alone, ASKED[0])[-1], Refused)


def test_an_outage_does_not_refuse_a_domain(remote: Project, expert: FakeVllm, monkeypatch) -> None:
    monkeypatch.setattr(servers, "AGAIN", 0.0)
    gag = GAG.open(remote)
    expert.status, gag.experts._model.servers._servers[0].away = 503, 1.0
    assert isinstance(told(gag, ASKED[0])[-1], Refused)
    expert.status = 200
    assert gag.domains.refused == {} and gag.ask(ASKED[0]).finish != "refused"


def test_a_refused_prompt_is_the_askers_fault(remote: Project, base: FakeVllm) -> None:
    gag = GAG.open(remote)
    gag.base.servers._servers[0].positions = 4096  # it says so, and it is not so
    event = told(gag, "tin " * 600, domain="general")[-1]
    assert isinstance(event, Refused) and isinstance(event.error, DataError)
    assert "maximum context length" in str(event.error)
    assert gag.ask("What is 3 plus 3?").text is not None


def test_a_slow_expert_does_not_hold_up_the_others(remote: Project, expert: FakeVllm) -> None:
    gag = GAG.open(remote)
    gag.ask(ASKED[-1])
    from gag.engine.answering import Answering
    from gag.engine.asking import Job

    expert.delay = 0.3
    answering, ended = Answering(gag), []
    for name, question in (("domain", ASKED[0]), ("general", ASKED[-1])):
        domain = "metals" if name == "domain" else "general"

        def take(event: Event, name: str = name) -> None:
            if isinstance(event, Ended | Refused):
                ended.append((name, type(event)))

        answering.add(Job(Ask((("user", question),), domain), take))
    while answering.busy:
        answering.step()
    assert ended == [("general", Ended), ("domain", Ended)]


def test_a_dropped_request_is_closed(remote: Project, base: FakeVllm) -> None:
    model = open_base(remote)
    base.delay = 0.05
    generator = model.generator(rows=2)
    first, second, third = generator.add([Request(model.prompts.plain("Why?"), 50) for _ in range(3)])
    while not generator.step():
        pass
    generator.drop([first, second])
    assert generator.unfinished == 1
    said = []
    while generator.unfinished:
        said += generator.step()
    assert {token.request for token in said} == {third} and said[-1].finish


def test_drawn_tokens_have_a_seed_of_their_own(remote: Project, base: FakeVllm) -> None:
    model = open_base(remote)
    base.asked.clear()
    drawn = seeded("Why?", 3, 4, 0.7, 0.9, 5)
    generate(model, [Request(model.prompts.plain("Why?"), 4, drawn), Request(model.prompts.plain("Why?"), 4)])
    hot, cold = base.bodies()
    assert (hot["temperature"], hot["top_p"], hot["top_k"], hot["seed"]) == (0.7, 0.9, 5, drawn.seed)
    assert cold["temperature"] == 0.0 and "seed" not in cold


def test_adapters_follow_the_domains_at_every_server(
    project: Project, base: FakeVllm, expert: FakeVllm, states: Path
) -> None:
    with running(FakeVllm(expert.root, states, LAYERS)) as second:
        gag = GAG.open(load_project(project.root, settings([base], [expert, second], states)))
        before = gag.ask(ASKED[0])
        name = f"metals@{gag.domains.revision('metals')}"
        assert name in expert.adapters and name in second.adapters
        second.adapters.clear()  # it was started anew
        second.experts.forget(name)
        expert.status = 503
        gag._answering = None  # nothing is kept
        assert gag.ask(ASKED[0]).knowledge.text == before.knowledge.text and name in second.adapters
        expert.status = 200
        remove_domain(project, "metals")
        gag.ask(ASKED[-1])
        ends = time.monotonic() + 5
        while name in expert.adapters or name in second.adapters:
            assert time.monotonic() < ends
            time.sleep(0.02)


def test_an_expert_with_weights_of_its_own_has_servers_of_its_own(
    project: Project, base: FakeVllm, expert: FakeVllm, states: Path, tmp_path: Path
) -> None:
    merge_expert(project, "metals", tmp_path / "merged")
    wanted = GAG.open(project).ask(ASKED[0])
    with running(FakeVllm(tmp_path / "merged", states, LAYERS)) as own:
        named = {"experts": f"{{metals: ['{own.url}']}}"}
        there = GAG.open(load_project(project.root, settings([base], [expert], states, **named)))
        expert.asked.clear()
        answer = there.ask(ASKED[0])
        assert answer.text == wanted.text and answer.knowledge.text == wanted.knowledge.text
        assert torch.allclose(answer.knowledge.vectors, wanted.knowledge.vectors, atol=1e-4)
        assert own.bodies() and not expert.bodies() and not own.adapters
        assert not any("metals" in name for name in expert.adapters)
        own.status = 503
        with pytest.raises(GagError, match="no server of the expert of metals answers"):
            there.ask("What is in metals number 5?", domain="metals")
    wrong = {"experts": f"{{metals: ['{expert.url}']}}"}
    there = GAG.open(load_project(project.root, settings([base], [expert], states, **wrong)))
    with pytest.raises(GagError, match=r"under remote\.experts answer otherwise"):
        there.ask(ASKED[0], domain="metals")
    gone = {"experts": "{metals: ['http://127.0.0.1:9']}"}
    there = GAG.open(load_project(project.root, settings([base], [expert], states, **gone)))
    with pytest.raises(GagError, match="no server of the expert of metals answers"):
        there.ask(ASKED[0], domain="metals")


def test_an_expert_that_no_server_can_load_is_refused(
    project: Project, remote: Project, base, expert, states
) -> None:
    (project.domain("plants") / "expert" / "adapter_model.safetensors").rename(
        project.domain("plants") / "expert" / "model.safetensors"
    )
    experts = open_experts(remote)
    with pytest.raises(MismatchError, match=r"under remote\.experts\.plants"):
        experts.load("plants@1", project.domain("plants") / "expert")
    moved = load_project(project.root, settings([base], [expert], states, project="/srv/gag"))
    with pytest.raises(Exception, match=r"/srv/gag/domains/metals/expert.*see that it reads that folder"):
        open_experts(moved).load("metals@1", project.domain("metals") / "expert")


def test_states_that_nobody_takes_are_cleared(remote: Project, states: Path) -> None:
    """The connector writes for every request, and those of texts while they are written nobody reads."""
    old, fresh = states / "cmpl-old.safetensors", states / "cmpl-fresh.safetensors"
    for file in (old, fresh):
        file.write_bytes(b"")
    os.utime(old, (1, 1))
    with open_experts(remote).using(None) as backbone:
        backbone.read_states([[5, 6]], [[7]], (-1,))
    assert list(states.iterdir()) == [fresh]
    fresh.unlink()


def test_layers_that_are_not_left_are_named(project: Project, base, expert, states) -> None:
    few = load_project(project.root, settings([base], [expert], states, layers="[0, 1]"))
    model = open_experts(few)
    with model.using(None) as backbone, pytest.raises(SettingsError, match=r"start them with \[0, 1, 2\]"):
        backbone.read_states([[5, 6]], [[7]], (-1,))
    none = load_project(project.root, settings([base], [expert], None))
    with (
        open_experts(none).using(None) as backbone,
        pytest.raises(SettingsError, match="take preset vocabulary"),
    ):
        backbone.read_states([[5, 6]], [[7]], (-1,))


def test_a_served_answer_comes_from_there_and_503_says_when_to_ask_again(
    remote: Project, base: FakeVllm
) -> None:
    with serve(remote) as client:
        reply = client.chat(
            ASKED[0],
        )
        assert reply.status_code == 200 and reply.json()["model"] == "gag/metals"
        base.stops_after = 0
        away = client.chat(ASKED[-1])
        assert away.status_code == 503 and int(away.headers["retry-after"]) > 1
        assert "no server of the base answers" in away.json()["error"]["message"]
        base.stops_after = None
        time.sleep(servers.AGAIN)
        assert client.chat(ASKED[-1]).status_code == 200


def test_events_come_in_their_order(remote: Project) -> None:
    events = told(GAG.open(remote), ASKED[0])
    kinds = [type(event) for event in events]
    assert kinds.index(Background) < kinds.index(Read) < kinds.index(Said) and kinds[-1] is Ended

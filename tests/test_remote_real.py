"""Real vLLM servers against the models here; where `GAG_VLLM_BASE` and `GAG_VLLM_EXPERT` name some.

The servers' models must lie in folders that are here, too; CONTRIBUTING.md has the commands.
"""

import os
from pathlib import Path

import openai
import pytest

from benchmarks.remote import FLOORS, Servers, answers, knowledge, questions_of, quick_project, root_of
from gag import GAG
from gag.engine.domains import remove_domain
from gag.project.project import Project, load_project
from gag.readout.store import read_store
from gag.stages.readouts import readouts
from tests.served import serve

NAMED = ("GAG_VLLM_BASE", "GAG_VLLM_EXPERT")
pytestmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in NAMED), reason=f"{' and '.join(NAMED)} name no vLLM servers"
)


@pytest.fixture(scope="module")
def servers() -> Servers:
    return Servers(*(os.environ[name].rstrip("/") for name in NAMED))


@pytest.fixture(scope="module")
def quick(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return quick_project(
        tmp_path_factory.mktemp("real") / "project", *map(root_of, (servers.base, servers.expert))
    )


def test_what_an_expert_knows_and_what_is_answered_is_the_same(quick: Project, servers: Servers) -> None:
    figures = knowledge(quick, servers) | answers(quick, servers)
    print(figures)
    for name, (relation, floor) in FLOORS.items():
        if name in figures:
            assert figures[name] <= floor if relation == "<=" else figures[name] >= floor, (name, figures)
    assert figures["answers"] == 96


def test_readouts_written_there_are_those_written_here(
    quick: Project, servers: Servers, tmp_path: Path
) -> None:
    import shutil

    run = quick.inputs("metals").run("readouts")
    ours = read_store(run / "align")
    shutil.move(run, tmp_path / "ours")
    readouts(load_project(quick.root, servers.settings()), "metals")
    theirs = read_store(run / "align")
    assert theirs.texts == ours.texts and theirs.facts["expert"] == ours.facts["expert"]
    assert (theirs.slots - ours.slots).abs().max() <= 1e-5


def test_it_is_served_by_openais_protocol_and_a_domain_goes(quick: Project, servers: Servers) -> None:
    question = questions_of(1)[0]
    with serve(load_project(quick.root, servers.settings())) as served:
        client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0)
        asked = {"model": "gag/metals", "messages": [{"role": "user", "content": question}]}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        pieces = client.chat.completions.create(**asked, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == whole
    assert whole == GAG.open(quick).ask(question, "metals").text.strip()
    gag = GAG.open(load_project(quick.root, servers.settings()))
    gag.ask(question, "metals")
    remove_domain(quick, "metals")
    assert gag.ask(question).route.domain == "general" and gag.domains.names == []

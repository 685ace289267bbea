"""Where an answer is from: passages that a domain carries, named by the command and by the server."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.invented import cheeses
from gag import GAG
from gag.commands.app import app
from gag.corpus.project import start_project
from gag.engine.sources import Source, SourceIndex
from gag.errors import ArtifactError, DataError, SettingsError
from gag.project.domain import load_domain
from gag.project.project import Project, load_project
from gag.project.rows import write_rows
from gag.stages.build import build
from tests.conftest import make_model
from tests.served import serve


@pytest.fixture(scope="module")
def carrying(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built project, whose metals carry their passages."""
    root = tmp_path_factory.mktemp("carrying") / "project"
    shutil.copytree(built, root)
    rows = [
        {"id": f"p{i}", "text": f"Metal number {i} is found below hill {i * 7}.", "document": f"hill-{i}.md",
         "title": f"Hill {i}", "section": "Finds", "pages": [i + 1]}
        for i in range(8)
    ]  # fmt: skip
    write_rows(root / "data" / "corpus.jsonl", rows)
    settings = yaml.safe_load((root / "gag.yaml").read_text())
    settings["domains"]["metals"] |= {"corpus": "data/corpus.jsonl", "sources": True}
    settings["pretrain"] = {"batch_size": 2, "micro_batch_size": 2, "block_tokens": 32, "val_share": 0.3}
    (root / "gag.yaml").write_text(yaml.safe_dump(settings))
    build(load_project(root), ["metals"])
    return root


def test_the_passage_that_holds_the_answer_is_named() -> None:
    index = SourceIndex(
        [Source(one.name, one.name, "Making", (), one.name, one.document()) for one in cheeses(40)]
    )
    found = 0
    for one in cheeses(40):
        sources = index.find(f"What is the home of {one.name}?", "", one.home)
        found += sources[0].document == one.name
        assert 1 <= len(sources) <= 3 and sources[0].score == 1.0
    assert found == 40
    assert index.find("What is two plus two?", "", "4") == [] or index.find("zzz", "", "") == []
    assert SourceIndex([Source("a", "", "", (), "a", "...")]).find("what", "", "x") == []


def test_a_domain_carries_its_passages_where_it_chose_to(carrying: Path, built: Path) -> None:
    gag = GAG.open(carrying)
    found = gag.sources("metals", "Which metal is below hill 21?", "", "number 3")
    assert (found[0].document, found[0].section, found[0].pages) == ("hill-3.md", "Finds", (4,))
    assert gag.sources("general", "What?", "", "x") == [] and gag.sources("plants", "What?", "", "x") == []
    assert "sources.jsonl" in load_domain(carrying / "domains" / "metals").files
    assert "sources.jsonl" not in load_domain(built / "domains" / "metals").files


def test_harmed_passages_are_refused(carrying: Path, tmp_path: Path) -> None:
    shutil.copytree(carrying, tmp_path / "copy")
    path = tmp_path / "copy" / "domains" / "metals" / "sources.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ArtifactError, match=r"sources\.jsonl"):
        GAG.open(tmp_path / "copy").sources("metals", "What?", "", "x")


def test_sources_need_a_corpus(project: Project) -> None:
    settings = yaml.safe_load((project.root / "gag.yaml").read_text())
    settings["domains"]["metals"]["sources"] = True
    (project.root / "gag.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SettingsError, match="needs a corpus"):
        load_project(project.root)


def test_ask_and_the_server_name_sources(carrying: Path) -> None:
    question = "What is in metals number 3?"
    command = ["ask", question, "--domain", "metals", "--sources", "--project", str(carrying)]
    done = CliRunner().invoke(app, [*command, "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["sources"][0]["document"].startswith("hill-")
    shown = CliRunner().invoke(
        app, ["ask", question, "--domain", "metals", "--sources", "--project", str(carrying)]
    )
    assert "[source 1.00: hill-" in shown.stdout and "Finds, page" in shown.stdout
    with serve(load_project(carrying)) as client:
        whole = client.chat(question, model="gag/metals").json()["gag"]
        assert whole["sources"][0]["document"] == told["sources"][0]["document"]
        lines = client.chat(question, model="gag/metals", stream=True).text.split("\n")
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        named = [chunk["gag"]["sources"] for chunk in chunks if "sources" in chunk.get("gag", {})]
        assert named == [whole["sources"]]
        assert "sources" not in client.chat(question, model="gag/general").json()["gag"]


def test_a_project_starts_from_documents(tmp_path: Path) -> None:
    make_model(tmp_path / "p" / "models" / "base", 32, 0)
    make_model(tmp_path / "p" / "models" / "expert", 24, 1)
    (tmp_path / "My Cheeses").mkdir()
    for one in cheeses(12):
        (tmp_path / "My Cheeses" / f"{one.name}.md").write_text(one.document())
    models = ("models/base", "models/expert", "vocabulary")
    made = start_project(tmp_path / "p", tmp_path / "My Cheeses", *models)
    assert made.domain == "my-cheeses" and made.corpus.documents == 12 and made.questions.test > 0
    project = load_project(made.project.parent)
    described = project.described("my-cheeses")
    assert described.sources and described.corpus == "data/my-cheeses/corpus.jsonl"
    inputs = project.inputs("my-cheeses")
    assert {row.group for row in inputs.splits.val} <= {row.group for row in inputs.taught}
    assert project.settings.adapt.batch_size == 16 and project.settings.adapt.learning_rate == 1e-3
    project = load_project(
        project.root,
        (
            "adapt.epochs=1",
            "pretrain.epochs=1",
            "readout.max_new_tokens=4",
            "router.centres=2",
            "align.epochs=1",
        ),
    )
    build(project, ["my-cheeses"])
    assert GAG.open(project.root).sources("my-cheeses", "What is the home of it?", "", cheeses(12)[3].home)
    with pytest.raises(SettingsError, match="already there"):
        start_project(tmp_path / "p", tmp_path / "My Cheeses", *models)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no document"):
        start_project(tmp_path / "p2", tmp_path / "none", str(tmp_path / "p/models/base"), "x", "vocabulary")

"""Domains come, go and fail while the engine runs.

The folder is the truth, and one broken domain is one domain's affair.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gag import GAG
from gag.engine.domains import add_domain, remove_domain, verify_domains
from gag.engine.engine import ProjectGAG
from gag.errors import ArtifactError, RoutingError
from gag.project import artifacts, rows
from gag.project.domain import BANK, DOMAIN, EXPERT, PROJECTOR, STATISTICS, load_domain
from gag.project.listing import list_domains
from gag.project.project import Project, load_project
from gag.routing.bank import StoredBank
from gag.routing.state import load_router, load_state
from gag.stages.prototypes import add_questions
from tests.conftest import make_model
from tests.test_router_verbs import rows as questions_of

METAL, PLANT = "What is in metals number 2?", "What is in plants number 5?"


def opened(project: Project, *settings: str) -> ProjectGAG:
    return GAG.open(load_project(project.root, settings))


def test_a_domain_is_loaded_when_it_is_first_asked_and_the_least_recent_one_leaves(project: Project) -> None:
    wide = opened(project)
    assert wide.domains.loaded == [] and wide.domains.names == ["metals", "plants"]
    expected = [wide.ask(METAL, "metals").text, wide.ask(PLANT, "plants").text]
    assert wide.domains.loaded == ["metals", "plants"]
    gag = opened(project, "decoding.resident_domains=1")
    for _ in range(2):
        assert [gag.ask(METAL, "metals").text, gag.ask(PLANT, "plants").text] == expected
        assert gag.domains.loaded == ["plants"]
    adapters = [name for name, _ in gag.experts.backbone.model.named_parameters() if "lora" in name]
    assert adapters and all("domain-plants@" in name for name in adapters)


def test_loading_one_domain_leaves_the_others_weights_alone(project: Project) -> None:
    gag = opened(project)
    gag.ask(METAL, "metals"), gag.ask(PLANT, "plants")
    stored = load_file(project.domain("metals") / EXPERT / "adapter_model.safetensors")
    loaded = {n: p for n, p in gag.experts.backbone.model.named_parameters() if "domain-metals" in n}
    assert len(loaded) == len(stored)
    for name, weight in loaded.items():
        plain = re.sub(r"\.domain-metals@\w+", "", name)
        assert torch.equal(stored[f"base_model.model.{plain}"], weight)


def test_domains_join_and_leave_while_the_engine_runs(project: Project, tmp_path: Path) -> None:
    gag = opened(project)
    expected = gag.ask([METAL, PLANT])
    away = project.domain("metals").rename(tmp_path / "away")
    assert gag.ask(METAL).route.domain != "metals" and gag.domains.names == ["plants"]
    with pytest.raises(RoutingError, match=r"no domain 'metals' here \(present: general, plants\)"):
        gag.ask(METAL, "metals")
    assert not any(name.startswith("metals") for name in gag.experts._adapters)
    away.rename(project.domain("metals"))
    again = gag.ask([METAL, PLANT])
    assert [(a.text, a.route.domain) for a in again] == [(a.text, a.route.domain) for a in expected]


def test_a_folder_that_grows_while_it_is_read_joins_once_it_is_whole(
    project: Project, tmp_path: Path
) -> None:
    away = project.domain("metals").rename(tmp_path / "away")
    gag = opened(project)
    target = project.domain("metals")
    target.mkdir()
    for name in (DOMAIN, PROJECTOR, "README.md", EXPERT, STATISTICS, BANK):
        copy = shutil.copytree if (away / name).is_dir() else shutil.copyfile
        copy(away / name, target / name)
        answer = gag.ask(PLANT)
        assert answer.finish != "refused" and answer.route.domain == "plants"
        assert ("metals" in gag.domains.names) == (name == BANK)
    assert gag.ask(METAL).route.domain == "metals"


def test_a_broken_domain_is_named_and_answers_again_once_it_is_mended(project: Project, capsys) -> None:
    whole = (project.domain("metals") / BANK).read_bytes()
    (project.domain("metals") / BANK).write_bytes(whole[:50])
    gag = opened(project)
    assert gag.domains.names == ["plants"] and "bank.safetensors is not what" in gag.domains.refused["metals"]
    assert "domain metals is refused, all others answer: metals/bank.safetensors" in capsys.readouterr().err
    assert gag.ask(PLANT).route.domain == "plants" and gag.ask("What is 3 plus 3?").route.domain == "general"
    with pytest.raises(ArtifactError, match="domain metals is refused"):
        gag.ask(METAL, "metals")
    assert [row.refusal for row in list_domains(project)] == ["", ""]  # its description is whole
    (project.domain("metals") / BANK).write_bytes(whole)
    assert gag.ask(METAL).route.domain == "metals"


def test_two_names_for_one_folder_are_one_domain(project: Project) -> None:
    (project.domains / "other").symlink_to(project.domain("metals"), target_is_directory=True)
    shutil.copytree(project.domain("plants"), project.domain("zz"))
    shutil.copytree(
        project.domain("plants"), project.domain("a-copy")
    )  # it comes first, and is not the original
    gag = opened(project)
    assert gag.domains.names == ["metals", "plants"]
    assert gag.domains.refused["other"].startswith("other is the same domain as metals")
    assert gag.domains.refused["zz"].startswith("zz is the same domain as plants")
    with pytest.raises(ArtifactError, match="a-copy is the same domain as plants"):
        verify_domains(project, [])
    shutil.rmtree(project.domain("a-copy"))
    shutil.rmtree(project.domain("plants"))
    gag.ask(METAL)
    assert gag.domains.names == ["metals", "zz"]  # now it is the only one of that name


def test_a_bank_of_another_encoder_among_good_ones_is_refused_alone(project: Project) -> None:
    edited(project, "metals", lambda facts: facts["bank"]["encoder"].update(max_tokens=9))
    gag = opened(project)
    assert gag.domains.names == ["plants"] and "max_tokens 9, expected 256" in gag.domains.refused["metals"]
    assert load_router(project).names == ["general", "plants"]


def edited(project: Project, name: str, change) -> None:
    """Edit a domain's description."""
    path = project.domain(name) / DOMAIN
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def sealed(project: Project, name: str) -> None:
    """Take what lies in a domain's folder for what should: its hashes are made anew."""
    folder = project.domain(name)
    edited(
        project, name, lambda facts: facts.update(files={f: rows.digest(folder / f) for f in facts["files"]})
    )


def test_a_domain_in_use_may_be_written_over(project: Project) -> None:
    """As `cp` of a newer version does: the running process has no map of the files."""
    gag = opened(project)
    expected = [answer.text for answer in gag.ask([METAL, PLANT])]
    for name in (PROJECTOR, f"{EXPERT}/adapter_model.safetensors"):
        with (project.domain("metals") / name).open("wb"):
            assert [answer.text for answer in gag.ask([METAL, PLANT])] == expected


def test_folders_of_no_domains_name_are_left_out_and_named_once(project: Project, capsys) -> None:
    strays = ["UPPER", "__pycache__", "general", "metals (copy)"]
    for name in strays:
        shutil.copytree(project.domain("metals"), project.domains / name)
    gag = opened(project)
    assert gag.ask(METAL).route.domain == "metals" and gag.domains.names == ["metals", "plants"]
    told = capsys.readouterr().err
    assert all(told.count(f"domains/{name} is left out") == 1 for name in strays)
    assert "rename the folder, or move it out of domains/" in told
    assert load_router(project).names == gag.router.names
    rows_of_list = list_domains(project)
    assert [row.name for row in rows_of_list if row.refusal] == strays
    assert verify_domains(project, []) == ["metals", "plants"]


def test_a_bank_that_goes_while_the_engine_runs_costs_its_own_route_alone(project: Project, capsys) -> None:
    gag = opened(project)
    file = project.domain("metals") / BANK
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    project.domain("third").mkdir()  # the set changes, so the router is made anew
    answers = gag.ask([METAL, PLANT, "What is 3 plus 3?"])
    assert [answer.route.domain for answer in answers][1:] == ["plants", "general"]
    assert "domain metals is left out of the router: metals/bank.safetensors" in capsys.readouterr().err
    assert gag.ask(PLANT, "general").finish != "refused" and gag.ask(METAL, "metals").text is not None
    file.write_bytes(whole)
    assert gag.ask(METAL).route.domain == "metals"


def test_a_bank_that_is_written_over_while_it_is_read_is_read_again(project: Project, monkeypatch) -> None:
    original, read = StoredBank._read, []

    def flaky(self, file, *others):
        read.append(file)
        if len(read) == 2:
            raise ArtifactError("cannot be read")
        return original(self, file, *others)

    monkeypatch.setattr(StoredBank, "_read", flaky)
    assert opened(project).router.names == ["general", "metals", "plants"]


def test_an_adapter_that_does_not_load_leaves_nothing_behind(project: Project) -> None:
    config = project.domain("metals") / EXPERT / "adapter_config.json"
    whole = config.read_text()
    for broken in ({"r": 16}, {"peft_type": "NONE"}, {"target_modules": ["nothing"]}):
        config.write_text(json.dumps(json.loads(whole) | broken))
        sealed(project, "metals")
        gag = opened(project)
        refused, other = gag.ask([METAL, PLANT])
        assert refused.finish == "refused" and "does not fit the expert backbone" in refused.refusal
        assert other.finish != "refused"
        config.write_text(whole)
        sealed(project, "metals")
        assert gag.ask(METAL).route.domain == "metals"


def test_a_description_that_is_not_of_its_files_is_refused_everywhere(
    project: Project, tmp_path: Path
) -> None:
    edited(project, "metals", lambda facts: facts["bank"].update(centres=2))
    gag = opened(project)
    assert gag.ask(PLANT).route.domain == "plants" and load_router(project).names == ["general", "plants"]
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        verify_domains(project, [])
    away = project.domain("metals").rename(tmp_path / "metals")
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        add_domain(project, away)
    assert project.present() == ["plants"]


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["files"].update({PROJECTOR: None}),
        lambda facts: facts["files"].update({"a\0b": "0"}),
        lambda facts: facts["files"].update({"n" * 300: "0"}),
        lambda facts: facts.update(scores={}),
    ],
)
def test_an_edited_description_is_its_domains_affair(project: Project, change) -> None:
    edited(project, "metals", change)
    gag = opened(project)
    assert gag.ask([METAL, PLANT])[1].route.domain == "plants"
    with pytest.raises(ArtifactError):
        verify_domains(project, ["metals"])
    assert [row.name for row in list_domains(project)] == ["metals", "plants"]


def test_a_general_bank_that_describes_nothing_is_said_in_one_line(project: Project) -> None:
    path = project.general / "manifest.json"
    facts = json.loads(path.read_text())
    for bank in (None, {"count": 3}, [1]):
        path.write_text(json.dumps(facts | {"bank": bank}))
        with pytest.raises(ArtifactError, match=r"general/manifest.json describes no bank; run `gag proto"):
            load_router(project)


def test_a_link_is_removed_and_what_it_points_to_stays(project: Project, tmp_path: Path) -> None:
    away = project.domain("metals").rename(tmp_path / "metals")
    project.domain("metals").symlink_to(away, target_is_directory=True)
    remove_domain(project, "metals")
    assert project.present() == ["plants"] and (away / DOMAIN).is_file()
    assert add_domain(project, away) == "metals"
    remove_domain(project, "metals")
    assert project.present() == ["plants"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    hashed: list[Path] = []

    def digest(path: Path) -> str:
        hashed.append(path)
        return rows.digest(path)

    monkeypatch.setattr(artifacts, "digest", digest)
    return hashed


def test_a_folder_is_hashed_once_and_again_where_it_changed(project: Project, monkeypatch) -> None:
    import os

    folder = project.domain("metals")
    for path in folder.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # settled
    hashed = counted(monkeypatch)
    load_domain(folder)
    assert len(hashed) == len(load_domain(folder).files)
    hashed.clear()
    load_domain(folder)
    assert hashed == []
    (folder / PROJECTOR).touch()
    load_domain(folder)
    assert hashed == [folder / PROJECTOR]
    hashed.clear()
    load_domain(folder, anew=True)  # what `gag domains verify` does
    assert len(hashed) == len(load_domain(folder).files)
    content = (folder / PROJECTOR).read_bytes()
    (folder / PROJECTOR).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # just now, of the same size
    with pytest.raises(ArtifactError, match="not what domain.json describes"):
        load_domain(folder)


def test_opening_reads_what_routes_and_no_module(project: Project, monkeypatch) -> None:
    for seen in project.root.rglob(artifacts.SEEN):
        seen.unlink()  # a project that nobody opened yet
    hashed = counted(monkeypatch)
    gag = opened(project)
    assert {path.name for path in hashed} == {BANK}
    hashed.clear()
    gag.ask(METAL, "metals")
    assert BANK not in {path.name for path in hashed} and PROJECTOR in {path.name for path in hashed}
    assert not any("plants" in str(path) for path in hashed)
    hashed.clear()
    list_domains(project)
    assert hashed == []


def test_a_domain_that_fails_sends_no_other_one_away(project: Project) -> None:
    gag = opened(project, "decoding.resident_domains=1")
    gag.ask(METAL, "metals")
    file = project.domain("plants") / EXPERT / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="edited or cut short"):
        gag.ask(PLANT, "plants")
    assert gag.domains.loaded == ["metals"] and set(gag.domains.refused) == {"plants"}
    file.write_bytes(whole)  # in place: the folder that it lies in shows nothing of it
    assert gag.ask(PLANT).route.domain == "plants"


def test_a_file_that_cannot_be_opened_is_its_domains_affair(project: Project, monkeypatch) -> None:
    def digest(path: Path) -> str:
        if path == project.domain("metals") / BANK:
            raise PermissionError(13, "Permission denied")
        return rows.digest(path)

    monkeypatch.setattr(artifacts, "digest", digest)
    (project.domain("metals") / BANK).touch()
    gag = opened(project)
    assert gag.domains.names == ["plants"]
    assert "metals/bank.safetensors cannot be read (Permission denied)" in gag.domains.refused["metals"]


def test_the_light_router_and_the_engine_have_one_set(project: Project) -> None:
    """So that neither undoes what the other keeps: of another base, or twice there."""
    make_model(project.root / "models" / "base", 32, seed=5)
    shutil.copytree(project.domain("plants"), project.domain("zz"))
    gag = opened(project)
    assert set(gag.domains.refused) == {"metals", "plants", "zz"}
    assert gag.router.names == load_router(project).names == ["general", "metals", "plants"]
    assert gag.ask([METAL])[0].finish == "refused" and "built for the base" in gag.ask([METAL])[0].refusal
    assert gag.ask(["What is 3 plus 3?"])[0].route.domain == "general"


@pytest.fixture
def calibrated(project: Project, tmp_path: Path) -> Project:
    """A project whose banks have questions enough."""
    for name in ("general", "metals", "plants"):
        asked = [row for row in questions_of(80) if row["domain"] == name]
        rows.write_rows(tmp_path / f"{name}.jsonl", asked)
        add_questions(project, name, tmp_path / f"{name}.jsonl")
    return project


def test_what_the_router_decides_is_kept_so_that_no_start_pays_twice(
    calibrated: Project, monkeypatch, tmp_path
) -> None:
    decided: list[int] = []
    from gag.routing import router

    original = router.calibrate

    def counting(names, *others):
        decided.append(len(names))
        return original(names, *others)

    monkeypatch.setattr(router, "calibrate", counting)
    first = load_router(calibrated)
    assert decided == [3] and load_state(calibrated.router) is not None
    assert load_router(calibrated).state.calibration == first.state.calibration
    gag = GAG.open(calibrated)
    assert decided == [3] and gag.router.state.calibration == first.state.calibration
    away = calibrated.domain("metals").rename(tmp_path / "metals")
    gag.ask(PLANT)  # a set that was changed by hand is calibrated once, and kept
    GAG.open(calibrated)
    assert decided == [3, 2]
    assert add_domain(calibrated, away) == "metals"
    assert decided == [3, 2, 3]
    GAG.open(calibrated)
    remove_domain(calibrated, "plants")
    assert decided == [3, 2, 3, 2]
    assert load_router(calibrated).names == ["general", "metals"] and decided == [3, 2, 3, 2]


def test_a_router_that_was_kept_reads_no_statistics(calibrated: Project, monkeypatch) -> None:
    fresh = load_router(calibrated)
    monkeypatch.setattr(StoredBank, "packed_scatter", property(lambda self: 1 / 0))
    monkeypatch.setattr(StoredBank, "sample", property(lambda self: 1 / 0))
    kept = load_router(calibrated)
    assert kept.route([METAL, PLANT]) == fresh.route([METAL, PLANT])


@pytest.mark.parametrize(
    "harm", [lambda whole: whole[:100], lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])]
)
def test_harmed_statistics_cost_their_own_domain_its_route_alone(
    calibrated: Project, monkeypatch, capsys, harm
) -> None:
    file = calibrated.domain("plants") / STATISTICS
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    gag = opened(calibrated)
    assert "domain plants is left out of the router: plants/bank-statistics" in capsys.readouterr().err
    assert gag.router.names == ["general", "metals"] and gag.router.calibration is not None
    assert gag.ask(METAL).route.domain == "metals" and gag.ask(PLANT, "plants").text is not None
    monkeypatch.setattr("gag.routing.router.calibrate", lambda *_: 1 / 0)  # decided once
    assert load_router(calibrated).names == opened(calibrated).router.names == ["general", "metals"]
    monkeypatch.undo()
    file.write_bytes(whole)
    assert load_router(calibrated).names == ["general", "metals", "plants"]
    assert gag.ask(PLANT).route.domain == "plants"  # the running engine takes it back too
    file.write_bytes(harm(whole))  # what is decided needs them no more
    assert load_router(calibrated).names == ["general", "metals", "plants"]


def test_the_rule_that_is_asked_for_is_followed_and_another_risk_is_said(calibrated: Project, capsys) -> None:
    def rule(*settings: str) -> str:
        return load_router(load_project(calibrated.root, settings)).rule

    best = rule()
    assert rule("router.rule=ppr") == "ppr" and rule("router.rule=whitened") == "whitened"
    made = load_router(calibrated).calibration
    assert made is not None and made.rule == best and len(made.losses) == 4
    assert rule(f"router.rule={best}") == best
    assert "router.alpha" not in capsys.readouterr().err
    rule("router.alpha=0.2")
    asked = "router.alpha is 0.2, the router was calibrated for 0.01; run `gag router calibrate`"
    assert asked in capsys.readouterr().err


def test_the_router_follows_once_what_it_waited_for_is_there(project: Project, tmp_path: Path) -> None:
    gag = opened(project)
    project.general.rename(tmp_path / "general")
    shutil.rmtree(project.domain("metals"))
    for _ in range(2):
        with pytest.raises(ArtifactError, match="gag prototypes general"):
            gag.ask(METAL)
    (tmp_path / "general").rename(project.general)
    assert gag.ask(METAL).route.domain != "metals" and gag.router.names == ["general", "plants"]


def test_an_adapter_is_stored_in_the_backbones_precision(project: Project) -> None:
    root = project.root / "models" / "expert" / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(root).items()}, root, {"format": "pt"})
    from gag.stages.adapt import adapt

    half = load_project(project.root, ("expert.dtype=bfloat16", "adapt.epochs=0.5"))
    folder = adapt(half, "metals")
    stored = load_file(folder / "expert" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_no_path_of_a_machine_travels_with_a_domain(project: Project, tmp_path: Path) -> None:
    from gag.stages.build import build

    models = shutil.copytree(project.root / "models", tmp_path / "else" / "models")
    named = (f"base.model={models / 'base'}", f"expert.model={models / 'expert'}", "adapt.rank=2")
    build(load_project(project.root, named), ["metals"])
    for path in project.domain("metals").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert load_domain(project.domain("metals")).facts.base.model == "base"

"""What the published code trained, in its own files: taken as it is, and only what is of these models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gag.engine.domains import verify_domains
from gag.engine.engine import LocalGAG
from gag.errors import ArtifactError, DataError, GagError, SettingsError
from gag.project.artifacts import read_manifest
from gag.project.domain import load_domain
from gag.project.project import Project, load_project
from gag.project.rows import write_rows
from gag.project.settings import PromptSettings
from gag.projection.modules import domain_projector
from gag.routing.router import RouterState, settled
from gag.routing.state import domain_bank, general_bank, load_router
from gag.stages.prototypes import add_questions, prototypes
from gag.stages.published import import_bank, import_domain
from tests.conftest import METALS, PLANTS, make_model, write_tiny_project
from tests.test_cli import run

LAYOUT = "{answer}\\nQuestion: {question}\\nKnowledge: {knowledge}\\n "
V4 = {"readout": {"layers": [-1, 1], "slots": 3, "pooling": "norm"}, "align": {"projector": "gated_residual"}}


class Trained:
    """A project, and beside it the files that the published code would have written for it."""

    def __init__(self, folder: Path, version: str):
        prompts = {"expert": "Say.", "answer": "Tell.", "layout": LAYOUT.encode().decode("unicode_escape")}
        described = {"metals": {"prompts": prompts}, "plants": {"test": "data/plants-test.jsonl"}}
        changes = {"router": {"rule": "ppr"}, "domains": described, "adapt": {"tuning": "full"}}
        root = write_tiny_project(folder / "project", **changes, **(V4 if version == "v4" else {}))
        self.project, self.folder = load_project(root), folder
        torch.manual_seed(3)
        linear, norm = nn.Linear, nn.LayerNorm
        if version == "v1":
            parts = {"projector.projector.0": linear(24, 32), "projector.projector.2": linear(32, 32)}
        else:
            parts = {
                "projector.input_norm": norm(24),
                "projector.input_proj": linear(24, 32),
                "projector.norm": norm(32),
                "projector.update.0": linear(32, 32),
                "projector.update.2": linear(32, 32),
                "projector.gate.0": linear(32, 32),
            }
        self.parts = parts
        self.weights = {f"{n}.{k}": v.data for n, part in parts.items() for k, v in part.named_parameters()}
        if version == "v4":
            self.weights["layer_mixer_logits"] = torch.randn(3, 2)
            self.weights["semantic_head.0.weight"] = torch.randn(32, 32)
        stored = load_file(root / "models" / "base" / "model.safetensors")
        rows = torch.cat([stored["model.embed_tokens.weight"], torch.zeros(1, 32)])  # their token's
        self.weights["model.embed_tokens.weight"] = self.weights["lm_head.weight"] = rows
        self.projector, self.expert = folder / "stage-2", folder / "stage-1"
        self.projector.mkdir()
        torch.save(self.weights, self.projector / "ckpt.pth")
        make_model(self.expert, 24, 9)
        tensors = load_file(self.expert / "model.safetensors")
        torch.save(tensors, self.expert / "pytorch_model.bin")
        (self.expert / "model.safetensors").unlink()
        self.prototypes = {
            name: self.written(name, seed) for seed, name in enumerate(("general", "metals", "plants"))
        }

    def written(self, name: str, seed: int, width: int = 24) -> Path:
        centres = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
        centres = torch.nn.functional.normalize(centres, dim=1)
        held = {"domain_name": name, "encoder_name_or_path": "their/encoder", "hidden_size": width}
        torch.save(held | {"num_prototypes": 4, "prototypes": centres}, self.folder / f"{name}.pt")
        return self.folder / f"{name}.pt"

    def taken(self) -> Path:
        return import_domain(self.project, "metals", self.expert, self.projector, self.prototypes["metals"])


@pytest.fixture(params=["v1", "v4"])
def trained(request: Any, tmp_path: Path) -> Trained:
    return Trained(tmp_path, request.param)


@pytest.fixture
def first(tmp_path: Path) -> Trained:
    return Trained(tmp_path, "v1")


def theirs(trained: Trained, slots: torch.Tensor) -> torch.Tensor:
    """Project slots [B, S, L, De] as the published modules do."""
    parts, gelu = trained.parts, nn.functional.gelu
    if len(parts) == 2:
        return parts["projector.projector.2"](gelu(parts["projector.projector.0"](slots[:, :, 0])))
    states = nn.functional.layer_norm(slots, slots.shape[-1:], eps=1e-6).clamp(-10, 10)
    mix = trained.weights["layer_mixer_logits"].clamp(-10, 10).softmax(-1)
    mixed = (states * mix[None, :, :, None]).sum(2)
    direct = parts["projector.input_proj"](parts["projector.input_norm"](mixed))
    seen = parts["projector.norm"](direct)
    update = parts["projector.update.2"](gelu(parts["projector.update.0"](seen)))
    return direct + torch.sigmoid(parts["projector.gate.0"](seen)) * update


def test_a_domain_of_theirs_is_one_of_ours(trained: Trained, capsys) -> None:
    folder = trained.taken()
    import_bank(trained.project, "general", trained.prototypes["general"])
    domain = load_domain(folder)
    slots = torch.randn(2, domain.facts.readout.slots, len(domain.facts.readout.layers), 24)
    assert torch.allclose(domain_projector(domain)(slots), theirs(trained, slots), atol=1e-6)
    assert "default" not in capsys.readouterr().err
    assert verify_domains(trained.project, ["metals"]) == ["metals"]
    held = torch.load(trained.prototypes["metals"], weights_only=True)["prototypes"]
    assert torch.allclose(domain_bank(domain).centres, held, atol=1e-6)
    tensors = torch.load(trained.expert / "pytorch_model.bin", weights_only=True)
    ours = load_file(folder / "expert" / "model.safetensors")
    assert all(ours[name].equal(tensor) for name, tensor in tensors.items())
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth")]
    gag = LocalGAG(trained.project)
    answer = gag.ask(["What is in metals number 2?"], "metals")[0]
    assert answer.tokens_added == domain.facts.readout.slots
    card = (folder / "README.md").read_text()
    assert "not measured" in card and "full tuning" in card


def test_their_routes_are_ours(first: Trained) -> None:
    first.taken()
    import_bank(first.project, "general", first.prototypes["general"])
    router = load_router(first.project)
    asked = [f"{word} {i}?" for word in (*METALS, *PLANTS) for i in range(5)]
    vectors = router.encoder.encode(asked)
    held = {
        n: torch.load(first.prototypes[n], weights_only=True)["prototypes"] for n in ("general", "metals")
    }
    scores = torch.stack([(vectors @ centres.T).amax(1) for centres in held.values()], 1)
    assert [route.domain for route in router.route(asked)] == [
        ["general", "metals"][i] for i in scores.argmax(1)
    ]


def test_whole_weights_and_an_unmixed_projector_are_taken(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "v4")
    del trained.weights["layer_mixer_logits"]
    (trained.projector / "ckpt.pth").unlink()
    names = sorted(trained.weights)
    for part, chosen in enumerate((names[:4], names[4:])):
        shard = trained.projector / f"pytorch_model-0000{part}-of-00002.bin"
        torch.save({name: trained.weights[name] for name in chosen}, shard)
    assert torch.equal(domain_projector(load_domain(trained.taken())).mix, torch.zeros(3, 2))  # pyright: ignore
    shutil.rmtree(trained.projector)
    trained.projector.mkdir()
    held = {name: tensor.clone() for name, tensor in trained.weights.items()}
    with pytest.raises(ArtifactError, match="domains/metals is already there"):
        trained.taken()
    shutil.rmtree(trained.project.domain("metals"))
    save_file(held, trained.projector / "model.safetensors")
    assert load_domain(trained.taken()).facts.projector == "gated_residual"


def unsafe(trained: Trained) -> None:
    torch.save({"projector": print}, trained.projector / "ckpt.pth")


def cut(trained: Trained) -> None:
    whole = (trained.projector / "ckpt.pth").read_bytes()
    (trained.projector / "ckpt.pth").write_bytes(whole[: len(whole) // 2])


def other_base(trained: Trained) -> None:
    trained.weights["model.embed_tokens.weight"] = torch.randn(400, 32)
    torch.save(trained.weights, trained.projector / "ckpt.pth")


def not_finite(trained: Trained) -> None:
    trained.weights["projector.projector.0.bias"][0] = torch.nan
    torch.save(trained.weights, trained.projector / "ckpt.pth")


def another_kind(trained: Trained) -> None:
    trained.weights["projector.input_norm.weight"] = torch.ones(24)
    torch.save(trained.weights, trained.projector / "ckpt.pth")


def narrow(trained: Trained) -> None:
    trained.written("metals", 1, 16)


def no_prototypes(trained: Trained) -> None:
    torch.save({"prototypes": "none"}, trained.prototypes["metals"])


def another_rule(trained: Trained) -> None:
    trained.project = load_project(trained.project.root, ("router.rule=auto",))


def another_projector(trained: Trained) -> None:
    trained.project = load_project(
        trained.project.root, ("align.projector=gated_residual", "readout.pooling=norm")
    )


def empty(trained: Trained) -> None:
    (trained.projector / "ckpt.pth").unlink()


def wide(trained: Trained) -> None:
    shutil.rmtree(trained.expert)
    make_model(trained.expert, 16, 9)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (unsafe, "ckpt.pth cannot be read: it is cut short, or holds more than tensors"),
        (cut, "ckpt.pth cannot be read"),
        (other_base, "stage-2 was trained for another base"),
        (not_finite, r"no numbers \(in inner.bias\)"),
        (another_kind, "stage-2 holds no projector of the published code's two kinds"),
        (narrow, "metals.pt was made by their/encoder of width 16, router.encoder here has 24"),
        (no_prototypes, "metals.pt holds no prototypes"),
        (another_rule, "set router.rule: ppr, or make a bank of questions with `gag prototypes metals`"),
        (another_projector, "kind mlp, align.projector is gated_residual; set preset: v1"),
        (empty, "stage-2 holds no weights"),
        (wide, "stage-1 .* are not of the expert"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    first: Trained, harm: Callable[[Trained], None], message: str
) -> None:
    harm(first)
    with pytest.raises(GagError, match=message):
        first.taken()
    assert not first.project.domain("metals").exists()


def test_a_default_layout_is_said(first: Trained, capsys) -> None:
    settings = f"domains.metals.prompts.layout={json.dumps(PromptSettings().layout)}"
    first.project = load_project(first.project.root, (settings,))
    first.taken()
    assert "domains.metals.prompts.layout is the default" in capsys.readouterr().err


def test_centres_alone_serve_no_other_rule_and_take_no_questions(first: Trained) -> None:
    first.taken()
    general = import_bank(first.project, "general", first.prototypes["general"])
    assert read_manifest(general)["bank"]["sample"] == 0
    other = load_project(first.project.root, ("router.rule=auto",))
    banks = {
        "general": general_bank(other),
        "metals": domain_bank(load_domain(first.project.domain("metals"))),
    }
    state = settled(banks, other.settings.router, None)
    assert (
        isinstance(state, RouterState)
        and "general, metals: centres alone, without questions" in state.warning
    )
    with pytest.raises(DataError, match="centres alone, which were imported"):
        add_questions(first.project, "metals", first.project.root / "data" / "general.jsonl")


def test_a_bank_is_taken_where_none_of_questions_stands(first: Trained, project: Project, capsys) -> None:
    with pytest.raises(SettingsError, match="describes no domain 'nosuch'"):
        import_bank(first.project, "nosuch", first.prototypes["plants"])
    here = load_project(project.root, ("router.rule=ppr",))
    with pytest.raises(ArtifactError, match="general holds a bank of general's questions"):
        import_bank(here, "general", first.prototypes["general"])
    with pytest.raises(ArtifactError, match="domains/metals is already there, with a bank"):
        import_bank(here, "metals", first.prototypes["metals"])
    import_bank(first.project, "general", first.prototypes["general"])
    kept = general_bank(first.project).identity
    prototypes(first.project, "general")  # as a build begins
    assert (
        general_bank(first.project).identity == kept
        and "it was imported, and stays" in capsys.readouterr().err
    )
    prototypes(
        load_project(first.project.root, ("router.rule=auto",)), "general"
    )  # which centres cannot serve
    assert general_bank(first.project).sample_count == 6


def test_a_report_counts_banks_that_have_no_expert(project: Project, capsys, monkeypatch) -> None:
    """The published six-domain report: general, domains with experts, and banks of others."""
    root = project.root
    shutil.move(root / "domains" / "plants", root / "kept")
    shutil.move(root / "runs" / "plants", root / "kept-runs")
    at = ("--project", str(root))
    rows = [
        {"question": f"What is in {d} number {i}?", "label": d}
        for d in ("metals", "plants")
        for i in range(8)
    ]
    rows += [{"question": f"What is {i} plus {i}?", "label": "general"} for i in range(6)]
    write_rows(root / "mixed.jsonl", rows)
    asked = ("router", "evaluate", str(root / "mixed.jsonl"), "--json", *at)
    code, out, err = run(capsys, monkeypatch, *asked)
    assert code == 0 and "plants" not in json.loads(out.splitlines()[-1])["domains"] and "strangers" in err
    assert run(capsys, monkeypatch, "prototypes", "plants", *at)[0] == 0
    code, out, err = run(capsys, monkeypatch, *asked)
    figures = json.loads(out.splitlines()[-1])
    assert code == 0 and "counted too: plants (a bank and no expert" in err
    assert figures["domains"]["plants"]["recall"] > 0.8 and "strangers" not in err
    assert not (root / "domains" / "plants").exists()
    shutil.move(
        root / "kept-runs" / "adapt", root / "runs" / "plants" / "adapt"
    )  # unplugged, not without one
    assert "plants" not in json.loads(run(capsys, monkeypatch, *asked)[1].splitlines()[-1])["domains"]


def test_the_command_takes_a_domain_or_a_bank_alone(first: Trained, capsys, monkeypatch) -> None:
    at = ("--project", str(first.project.root))
    files = {name: str(path) for name, path in first.prototypes.items()}
    whole = ("--expert", str(first.expert), "--projector", str(first.projector / "ckpt.pth"))
    ask = ("domains", "import")
    assert run(capsys, monkeypatch, *ask, "metals", "--prototypes", files["metals"], *whole, *at)[0] == 0
    assert run(capsys, monkeypatch, *ask, "general", "--prototypes", files["general"], *at)[0] == 0
    code, out, _ = run(capsys, monkeypatch, *ask, "plants", "--prototypes", files["plants"], *at)
    assert code == 0 and out == "wrote runs/plants/prototypes\n"
    code, out, _ = run(capsys, monkeypatch, "domains", "list", *at)
    assert "metals" in out and " - " in out
    code, _, err = run(capsys, monkeypatch, *ask, "metals", "--prototypes", "nowhere.pt", *at)
    assert code == 2 and "nowhere.pt is not there" in err
    code, _, err = run(capsys, monkeypatch, *ask, "general", "--prototypes", files["general"], *whole, *at)
    assert code == 2 and "general neither of them" in err
    code, _, err = run(capsys, monkeypatch, *ask, "metals", "--prototypes", files["metals"], *whole[:2], *at)
    assert code == 2 and "together" in err

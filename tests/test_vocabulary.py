"""What an expert predicts, in the base's embeddings.

Exact, of shared tokens alone, and a start for the projector.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from gag.engine.engine import GAG
from gag.errors import MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone
from gag.project.hyperparameters import PRESETS, AlignSettings, ReadoutSettings
from gag.project.project import load_project
from gag.project.settings import ModelSettings
from gag.projection.projector import GatedResidual
from gag.readout.states import read
from gag.readout.vocabulary import (
    LIKELIEST,
    BaseVocabulary,
    check_shared,
    likely_embeddings,
    load_vocabulary,
)
from gag.stages.adapt import adapt
from gag.stages.build import build
from tests.conftest import Alone, write_tiny_project

SETTINGS = ReadoutSettings(**PRESETS["vocabulary"]["readout"], max_new_tokens=6)


def table_of(base: Backbone) -> torch.Tensor:
    model: Any = base.model
    return model.get_input_embeddings().weight


def words_of(base: Backbone) -> BaseVocabulary:
    return BaseVocabulary(base.table, base.prompts)


def test_a_state_becomes_the_mean_embedding_of_the_tokens_that_it_foretells(
    expert: Backbone, base: Backbone
) -> None:
    prompt, written = expert.prompts.ask_expert("What is tin?", "Say."), [7, 8, 9, 10]
    full = expert.model(torch.tensor([prompt + written])).logits[0, -4:]
    likely = full.softmax(-1).topk(LIKELIEST)
    kept = torch.zeros_like(full).scatter(-1, likely.indices, likely.values)
    wanted = (kept / kept.sum(-1, keepdim=True)) @ table_of(base)
    found = expert.foretold([prompt], [written], LIKELIEST)[0]
    assert torch.allclose(found.log_probabilities, full.log_softmax(-1).topk(LIKELIEST).values, atol=1e-4)
    assert torch.allclose(likely_embeddings(found, table_of(base)), wanted, atol=1e-4)
    least = int(found.ids.min(1).values.max())  # of each row one token at least
    inside = found.log_probabilities.exp() * (found.ids <= least)
    kept = torch.einsum("tk,tkd->td", inside / inside.sum(-1, keepdim=True), table_of(base)[found.ids])
    cut = likely_embeddings(found, table_of(base)[: least + 1])  # a token beyond the table is never predicted
    assert torch.allclose(cut, kept, atol=1e-4)


def test_what_is_foretold_while_writing_is_what_the_states_foretell(expert: Backbone, base: Backbone) -> None:
    """Each step's likeliest tokens spare a second pass; a text that is at hand is read by its states."""
    questions = ["What is tin?", "Name the glow of zinc."]
    fresh = read(Alone(expert), "", questions, "Say.", SETTINGS, words_of(base))
    again = read(Alone(expert), "", questions, "Say.", SETTINGS, words_of(base), written=fresh.ids)
    assert fresh.texts == again.texts and torch.allclose(fresh.slots, again.slots, atol=1e-5)


def test_a_readout_is_as_wide_as_the_base_and_batched_is_single(expert: Backbone, base: Backbone) -> None:
    questions = ["What is tin?", "Name the glow of zinc.", "Why?"]
    batched = read(Alone(expert), "", questions, "Say.", SETTINGS, words_of(base))
    singles = [
        read(Alone(expert), "", [question], "Say.", SETTINGS, words_of(base)) for question in questions
    ]
    assert batched.slots.shape == (3, 1, 1, base.width)
    assert torch.allclose(batched.slots, torch.cat([single.slots for single in singles]), atol=1e-5)


def test_the_table_is_the_bases_own_embedding(project: Any) -> None:
    settings, root, device = project.settings, project.root, torch.device("cpu")
    assert torch.equal(
        load_vocabulary(settings.base, root, device).table.float(),
        table_of(load_backbone(settings.base, root)),
    )
    with pytest.raises(SettingsError, match="the model nowhere cannot be loaded"):
        load_vocabulary(ModelSettings(model="nowhere"), root, device)


def test_other_tokens_are_refused(expert: Backbone) -> None:
    swapped = expert.tokenizer.get_vocab()
    first, second = list(swapped)[:2]
    with pytest.raises(MismatchError, match="models of one family"):
        check_shared(
            expert.name,
            expert.tokenizer.get_vocab(),
            swapped | {first: swapped[second], second: swapped[first]},
        )


def test_other_tokens_are_refused_before_the_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_project(tmp_path)
    monkeypatch.setattr("gag.planning.models.Blueprint.tokens", property(lambda model: {model.name: 0}))
    with pytest.raises(MismatchError, match="models of one family"):
        adapt(load_project(tmp_path, ("preset=vocabulary",)), "metals")
    assert not (tmp_path / "runs" / "metals" / "adapt").exists()


def test_the_start_is_a_multiple_of_the_identity() -> None:
    torch.manual_seed(0)
    projector, slots = GatedResidual(8, 8, 2, 1), torch.randn(40, 2, 1, 8)
    features = projector.norm_in(projector.mixed(slots))
    goal = torch.linspace(-1, 1, 8)
    projector.start_from_identity(slots, 3 * (features.mean(1) - features.mean((0, 1))).detach() + goal)
    wanted = 3 * (features - features.mean((0, 1))) + goal
    assert torch.allclose(projector(slots), wanted, atol=1e-4)
    with pytest.raises(MismatchError, match=r"readout\.space: vocabulary"):
        projector.start_from_identity(slots, torch.zeros(40, 9))


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"set layers: \[-1\]"):
        ReadoutSettings(space="vocabulary")
    with pytest.raises(ValueError, match="set projector: gated_residual"):
        AlignSettings(start="identity")


def test_a_domain_is_built_and_asked(tmp_path: Path) -> None:
    write_tiny_project(tmp_path)
    project = load_project(tmp_path, ("preset=vocabulary",))
    build(project, ["metals"])
    gag = GAG.open(project)
    assert gag.domains.facts("metals").readout.space == "vocabulary"
    known = gag.read(["What is tin?"], "metals")[0]
    assert known.vectors.shape == (1, gag.base.width) and known.vectors.isfinite().all()
    assert gag.ask(["What is tin?"], "metals")[0].tokens_added == 1

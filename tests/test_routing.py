"""The router is the published rule, and banks of another encoder are refused."""

from dataclasses import replace

import pytest
import torch

from gag.backbone import Backbone
from gag.encoder import BackboneEncoder, EncoderSpec
from gag.errors import DataError, MismatchError, SettingsError
from gag.prototypes import Bank, build_bank, load_bank
from gag.router import Router
from gag.settings import RouterSettings

SPEC = EncoderSpec("fake", "mean", 256, 2)
ANGLES = {"east": 0.0, "north": 90.0, "between": 45.0, "nearly": 46.0}


class Compass:
    """An encoder that knows four directions."""

    spec = SPEC

    def encode(self, questions: list[str]) -> torch.Tensor:
        angles = torch.deg2rad(torch.tensor([ANGLES[q] for q in questions]))
        return torch.stack([angles.cos(), angles.sin()], 1)


def bank(direction: str) -> Bank:
    return Bank(Compass().encode([direction]), 1, torch.zeros(2), torch.zeros(2, 2), SPEC)


BANKS = {"general": bank("east"), "metals": bank("north")}


def test_the_nearest_prototype_wins_and_ties_go_to_general() -> None:
    routes = Router(BANKS, Compass()).route(["east", "north", "between", "nearly"])
    assert [route.domain for route in routes] == ["general", "metals", "general", "metals"]
    assert routes[1].score == pytest.approx(1) and routes[1].scores["general"] == pytest.approx(0, abs=1e-6)
    assert Router(BANKS, Compass()).route([]) == []


def test_the_margin_sends_doubts_to_general() -> None:
    routes = Router(BANKS, Compass(), margin=0.1).route(["nearly", "north"])
    assert [route.domain for route in routes] == ["general", "metals"]
    assert "leads general by less than 0.1" in routes[0].reason


def test_other_domains_scores_do_not_move() -> None:
    few, many = Router(BANKS, Compass()), Router(BANKS | {"woods": bank("between")}, Compass())
    before, after = few.route(["nearly"])[0].scores, many.route(["nearly"])[0].scores
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("change", [{"fingerprint": "x"}, {"pooling": "last"}, {"max_tokens": 9}, {"width": 3}])
def test_a_bank_of_another_encoder_is_refused(change: dict) -> None:
    other = replace(bank("north"), encoder=replace(SPEC, **change))
    with pytest.raises(MismatchError, match="gag build metals"):
        Router(BANKS | {"metals": other}, Compass())


def test_the_general_bank_is_needed() -> None:
    with pytest.raises(SettingsError, match="gag prototypes general"):
        Router({"metals": bank("north")}, Compass())


def test_the_encoder_is_the_masked_mean_of_the_last_state(expert: Backbone) -> None:
    questions = ["What is tin?", "Which metal is added to the bed of Kreluvax?", "Why?"]
    encoder = BackboneEncoder(expert, expert.fingerprint, RouterSettings(batch_size=2, max_tokens=6))
    vectors = encoder.encode(questions)
    for question, vector in zip(questions, vectors, strict=True):
        ids = torch.tensor([expert.prompts.text(question)[:6]])
        mean = expert.model.model(ids).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


def test_a_bank_is_saved_and_loaded(tmp_path) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), dim=-1)
    made = build_bank(vectors, SPEC, RouterSettings(centres=5))
    loaded = load_bank(tmp_path, made.save(tmp_path))
    assert loaded.count == 40 and loaded.encoder == SPEC
    for name in ("centres", "mean", "scatter"):
        assert torch.equal(getattr(loaded, name), getattr(made, name))
    assert torch.allclose(made.centres.norm(dim=-1), torch.ones(5))
    assert torch.allclose(made.scatter / 40, torch.cov(vectors.T, correction=0), atol=1e-6)


def test_few_and_repeated_questions_make_fewer_centres() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert len(build_bank(vectors, SPEC, RouterSettings()).centres) == 2
    with pytest.raises(DataError, match="at least one question"):
        build_bank(torch.zeros(0, 2), SPEC, RouterSettings())

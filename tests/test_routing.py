"""The published rule, the closed-form rules, abstention, and banks that come, go and grow."""

import json
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from gag.errors import ArtifactError, DataError, MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.project.domain import BANK, STATISTICS, BankFacts, EncoderSpec
from gag.project.project import Project
from gag.project.rows import digest
from gag.project.settings import RouterSettings
from gag.routing.bank import MemoryBank, load_bank
from gag.routing.building import HELD_OUT, Encoded, build_bank, encode_questions, load_questions, updated
from gag.routing.calibration import (
    CANDIDATES,
    GRID_SIZE,
    GRID_STEP,
    SUREST,
    _losses,
    _temperature,
    _unfitted_margins,
    _weights,
    calibration_shortage,
    margin_over_general,
    set_hash,
)
from gag.routing.query_encoder import BackboneEncoder
from gag.routing.router import Router, RouterState
from gag.routing.rules import Lda, Ppr, Query, Statistics, Whitened, shrink
from gag.routing.state import keep_state, load_state

SPEC = EncoderSpec("fake", "mean", 256, 2)
ANGLES = {"east": 0.0, "north": 90.0, "between": 45.0, "nearly": 46.0}
PPR = RouterSettings(rule="ppr")
WIDE = EncoderSpec("cloud", "mean", 256, 12)


class Compass:
    """An encoder that knows four directions."""

    spec = SPEC

    def encode(self, questions: list[str]) -> torch.Tensor:
        angles = torch.deg2rad(torch.tensor([ANGLES[q] for q in questions]))
        return torch.stack([angles.cos(), angles.sin()], 1)


class Cloud:
    """An encoder to which every question is one of metals."""

    spec = WIDE

    def encode(self, questions: list[str]) -> torch.Tensor:
        return cloud(1, len(questions), 4)


def bank(direction: str) -> MemoryBank:
    one = Compass().encode([direction])
    return MemoryBank(one, torch.ones(1), 1, torch.zeros(2), torch.zeros(2, 2), one[:0], SPEC)


def cloud(place: int, count: int, seed: int, spread: float = 0.25) -> torch.Tensor:
    """Unit vectors about an axis, scattered far more along the last axes, which tell nothing."""
    noise = torch.randn(count, WIDE.width, generator=torch.Generator().manual_seed(seed))
    noise[:, 8:] *= 4
    return torch.nn.functional.normalize(torch.eye(WIDE.width)[place] + spread * noise, dim=-1)


def cloudy(place: int, seed: int = 0, count: int = 300) -> MemoryBank:
    vectors = cloud(place, count, 10 * place + seed)
    return build_bank(
        Encoded([], vectors[count // 3 :], vectors[: count // 3]), WIDE, RouterSettings(centres=6)
    )


BANKS = {"general": bank("east"), "metals": bank("north")}
CLOUDS = {"general": cloudy(0), "metals": cloudy(1), "woods": cloudy(2)}


def test_the_nearest_prototype_wins_and_ties_go_to_general() -> None:
    router = Router(BANKS, Compass(), PPR)
    routes = router.route(["east", "north", "between", "nearly"])
    assert [route.domain for route in routes] == ["general", "metals", "general", "metals"]
    assert routes[1].score == pytest.approx(1)
    assert router.scores("north") == pytest.approx({"general": 0, "metals": 1}, abs=1e-6)
    assert Router(BANKS, Compass(), PPR).route([]) == []


def test_the_margin_sends_doubts_to_general() -> None:
    routes = Router(BANKS, Compass(), RouterSettings(rule="ppr", margin=0.1)).route(["nearly", "north"])
    assert [route.domain for route in routes] == ["general", "metals"]
    assert "lies above general by 0.0247, not over 0.1" in routes[0].reason


def test_other_domains_scores_do_not_move() -> None:
    few, many = Router(BANKS, Compass(), PPR), Router(BANKS | {"woods": bank("between")}, Compass(), PPR)
    before, after = few.scores("nearly"), many.scores("nearly")
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    "change", [{"fingerprint": "x"}, {"pooling": "last"}, {"max_tokens": 9}, {"width": 3}]
)
def test_a_bank_of_another_encoder_is_refused(change: dict) -> None:
    other = replace(bank("north"), encoder=replace(SPEC, **change))
    with pytest.raises(MismatchError, match=f"{next(iter(change))}.*gag build metals"):
        Router(BANKS | {"metals": other}, Compass(), PPR)


def test_the_general_bank_is_needed() -> None:
    with pytest.raises(SettingsError, match="gag prototypes general"):
        Router({"metals": bank("north")}, Compass(), PPR)


def test_too_few_held_out_questions_fall_back_to_the_published_rule() -> None:
    router = Router(BANKS, Compass(), RouterSettings())
    assert router.rule == "ppr" and router.calibration is None
    assert "general holds 0 questions out" in router.state.warning
    assert (
        Router({"general": bank("east")}, Compass(), RouterSettings()).route(["north"])[0].domain == "general"
    )


def test_closed_form_rules_see_through_scatter_that_tells_nothing() -> None:
    known = Statistics(list(CLOUDS.values()))
    asked = torch.cat([cloud(place, 200, 77 + place) for place in range(3)])
    truth = torch.arange(3).repeat_interleave(200)
    right = {
        rule.__name__: (rule(known).scores(Query(asked, known)).argmax(1) == truth).float().mean()
        for rule in (Ppr, Whitened, Lda)
    }
    assert right["Lda"] > right["Ppr"] + 0.05 and right["Whitened"] > right["Ppr"] + 0.03


def test_lda_is_the_log_density_of_gaussians_that_share_a_covariance() -> None:
    known, asked = Statistics(list(CLOUDS.values())), cloud(1, 50, 99)
    covariance = shrink(sum(b.scatter.double() for b in known.banks) / (600 - 3), 600 - 3).float()
    gaussians = [torch.distributions.MultivariateNormal(bank.mean, covariance) for bank in known.banks]
    wanted = torch.stack([gaussian.log_prob(asked) for gaussian in gaussians], 1)
    assert torch.allclose(
        Lda(known).scores(Query(asked, known)).log_softmax(1), wanted.log_softmax(1), atol=1e-3
    )
    nearest = -2 * (
        wanted - torch.distributions.MultivariateNormal(torch.zeros(12), covariance).log_prob(torch.zeros(12))
    )
    assert torch.allclose(Query(asked, known).nearest.square(), nearest.amin(1), rtol=1e-3)


def test_shrinkage_needs_the_sums_alone_and_stands_few_vectors() -> None:
    few = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).double()
    centred = few - few.mean(0)
    shrunk = shrink(centred.T @ centred / 3, 3)
    assert torch.linalg.eigvalsh(shrunk).min() > 0
    assert shrunk.trace() == pytest.approx(float((centred.T @ centred / 3).trace()))
    assert torch.linalg.eigvalsh(shrink(torch.zeros(5, 5, dtype=torch.float64), 1)).min() > 0


def test_a_set_with_one_domain_more_is_that_set_from_scratch() -> None:
    asked = cloud(1, 20, 3)
    more = Router(CLOUDS | {"stones": cloudy(3)}, Cloud(), RouterSettings())
    again = Router(dict(reversed((CLOUDS | {"stones": cloudy(3)}).items())), Cloud(), RouterSettings())
    assert torch.equal(more.judge(asked).scores, again.judge(asked).scores)
    back = {name: bank for name, bank in (CLOUDS | {"stones": cloudy(3)}).items() if name != "stones"}
    assert torch.equal(Router(back, Cloud(), RouterSettings()).judge(asked).scores,
                       Router(CLOUDS, Cloud(), RouterSettings()).judge(asked).scores)  # fmt: skip


def test_new_questions_add_up_without_the_old_ones() -> None:
    vectors, settings = cloud(1, 300, 1), RouterSettings(centres=6)
    old = build_bank(Encoded([], vectors[:200], vectors[:5]), WIDE, settings)
    grown = updated(old, Encoded([], vectors[200:], vectors[5:9]), settings)
    whole = build_bank(Encoded([], vectors, vectors[:0]), WIDE, settings)
    assert grown.count == 300 and torch.allclose(grown.mean, whole.mean, atol=1e-6)
    assert torch.allclose(grown.scatter, whole.scatter, atol=1e-4)
    assert float(grown.sizes.sum()) == 300 and len(grown.centres) == 6 and len(grown.held_out) == 9
    many = replace(old, count=900, held_out=cloud(1, HELD_OUT, 2))
    mixed = updated(many, Encoded([], vectors[200:], cloud(2, HELD_OUT, 3)), settings).held_out
    assert len(mixed) == HELD_OUT and int((mixed[:, 2] > mixed[:, 1]).sum()) == pytest.approx(
        HELD_OUT / 10, abs=15
    )


def test_the_promised_risk_holds_and_specialists_are_still_reached() -> None:
    for alpha in (0.05, 0.2):
        router = Router(CLOUDS, Cloud(), RouterSettings(alpha=alpha))
        risk = (router.judge(cloud(0, 3000, 500)).chosen > 0).float().mean()
        assert router.calibration is not None and router.calibration.reached == alpha
        assert risk <= alpha + 0.04
        assert (router.judge(cloud(1, 1000, 501)).chosen > 0).float().mean() > 0.9


def test_given_priors_move_the_odds_and_keep_the_promised_risk() -> None:
    plain, asked = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.1)), cloud(1, 50, 6)
    often = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.1, priors={"metals": 8.0, "woods": 0.5}))
    moved = (often.judge(asked).scores - plain.judge(asked).scores).mean(0)
    assert moved.tolist() == pytest.approx([0.0, math.log(8), math.log(0.5)], abs=1e-4)
    assert (often.judge(cloud(0, 3000, 500)).chosen > 0).float().mean() <= 0.14
    again = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.1), often.state)
    assert again.calibration == plain.calibration  # a calibration for other priors is not taken
    with pytest.raises(ValidationError, match="take rule auto"):
        RouterSettings(rule="ppr", priors={"metals": 2.0})
    with pytest.raises(ValidationError):
        RouterSettings(priors={"metals": 0.0})


def test_a_risk_that_so_few_questions_cannot_promise_is_said() -> None:
    router = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.001))
    assert router.calibration is not None and router.calibration.reached == pytest.approx(1 / 101)
    assert "at most 1.0% of general questions go to specialists, not 0.1%" in router.state.warning


def test_out_of_distribution_questions_go_to_general_however_sure_the_rule_is() -> None:
    router = Router(CLOUDS, Cloud(), RouterSettings())
    far = -cloud(1, 50, 7) + 2 * cloud(2, 50, 8)
    verdict = router.judge(torch.nn.functional.normalize(far, dim=-1) * 9)
    assert verdict.out_of_distribution.all() and (verdict.chosen == 0).all()
    assert router.route_vectors(far[:1] * 9)[0].reason == "far from every domain"
    near = Query(cloud(1, 200, 9), Statistics(router.banks)).nearest
    assert router.calibration is not None and (near > router.calibration.far).float().mean() < 0.05


def test_the_first_rule_that_is_no_worse_than_the_best_is_chosen() -> None:
    made = Router(CLOUDS, Cloud(), RouterSettings()).calibration
    assert made is not None and made.rule != "ppr" and min(made.losses.values()) < made.losses["ppr"] / 2
    order = list(CANDIDATES)
    passed_over = order[: order.index(made.rule)]
    assert all(made.losses[name] > min(made.losses.values()) for name in passed_over)
    assert made.losses[made.rule] <= min(made.losses.values()) + 0.02
    forced = Router(CLOUDS, Cloud(), RouterSettings(rule="whitened")).calibration
    assert forced is not None and forced.rule == "whitened" and set(forced.weights) == {"whitened"}
    router = Router(CLOUDS, Cloud(), RouterSettings())
    route, scores = router.route(["asked"])[0], router.scores("asked")
    assert route.domain == "metals" and route.score == scores["metals"] == max(scores.values())
    assert sum(scores.values()) == pytest.approx(1)


def moved(state: RouterState, margin: float) -> RouterState:
    assert state.calibration is not None
    return replace(state, calibration=replace(state.calibration, margin=margin))


def test_a_saved_calibration_is_for_its_own_set_alone(project: Project) -> None:
    made = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.2)).state
    keep_state(project, made)
    loaded = load_state(project.router)
    assert loaded is not None and loaded.calibration == made.calibration and loaded.members == made.members
    assert torch.equal(loaded.total, made.total) and torch.equal(loaded.root, made.root)  # pyright: ignore
    assert Router(CLOUDS, Cloud(), RouterSettings(), moved(loaded, 99.0)).margin == 99.0
    more = CLOUDS | {"stones": cloudy(3)}
    other = Router(more, Cloud(), RouterSettings(), moved(loaded, 99.0))
    anew = Router(more, Cloud(), RouterSettings(alpha=0.2))
    assert other.state == replace(
        anew.state, total=other.state.total, root=other.state.root
    )  # for the same risk
    assert torch.equal(other.state.total, anew.state.total)  # pyright: ignore
    assert torch.equal(other.state.root, anew.state.root)  # pyright: ignore - bit for bit
    fewer = {name: bank for name, bank in CLOUDS.items() if name != "woods"}
    assert torch.equal(
        Router(fewer, Cloud(), RouterSettings(), loaded).state.root,  # pyright: ignore
        Router(fewer, Cloud(), RouterSettings()).state.root,  # pyright: ignore
    )
    names = ["general", "metals", "woods"]
    assert made.calibration is not None
    assert made.calibration.bank_set == set_hash(names, [CLOUDS[name] for name in names])
    assert load_state(project.root / "none") is None


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"magic": 1.0}},
        {"margin": float("nan")},
        {"far": "x"},
        {"weights": 3},
        {"more": 1},
        {"priors": [1]},
    ],
)
def test_an_edited_calibration_is_refused(project: Project, change: dict) -> None:
    keep_state(project, Router(CLOUDS, Cloud(), RouterSettings()).state)
    path = project.router / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"calibration": content["calibration"] | change}))
    with pytest.raises(ArtifactError, match="gag router calibrate"):
        load_state(project.router)
    path.write_text(json.dumps(content | {"members": ["metals"]}))
    with pytest.raises(ArtifactError, match="gag router calibrate"):
        load_state(project.router)
    path.write_text(json.dumps(content)[:50])
    with pytest.raises(ArtifactError, match="not JSON"):
        load_state(project.router)
    path.write_text(json.dumps(content))
    sums = project.router / "sums.safetensors"
    whole = sums.read_bytes()
    for harmed in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100]):
        sums.write_bytes(harmed)
        with pytest.raises(ArtifactError, match="edited or cut short.*run `gag router calibrate`"):
            load_state(project.router)


def test_a_thousandth_of_the_temperatures_is_enough() -> None:
    """The bisection finds what trying every temperature finds."""
    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.1, 1.0, 10.0, 300.0):
        scores = (sharpness * torch.randn(200, 5, generator=generator)).double()
        truth = (scores + sharpness * torch.randn(200, 5, generator=generator)).argmax(1)
        best = scores.topk(2, dim=1).values
        lowest = float((best[:, 0] - best[:, 1]).median()) / SUREST
        tried = [lowest * GRID_STEP**i for i in range(GRID_SIZE)]
        wanted = min(tried, key=lambda t: float(_losses(scores / t, truth).mean()))
        assert _temperature(scores, truth) == wanted


def test_the_threshold_rests_on_margins_by_weights_that_were_fitted_without_the_question() -> None:
    """Cross-conformal: each half of general's questions is scored by the other half's weights."""
    made = Router(CLOUDS, Cloud(), RouterSettings(rule="lda"))
    statistics = Statistics(made.banks, made.state.root)
    held_out = [bank.held_out for bank in made.banks]
    truth = torch.arange(3).repeat_interleave(100)
    raw = {"lda": Lda(statistics).scores(Query(torch.cat(held_out), statistics))}
    margins = _unfitted_margins(raw, ("lda",), truth, torch.zeros(3))
    for kept, asked in ((1, 0), (0, 1)):
        rest = torch.cat([torch.arange(kept, 100, 2), torch.arange(100, 300)])
        weights = _weights({"lda": raw["lda"][rest]}, ("lda",), truth[rest])
        expected = margin_over_general(raw["lda"][asked:100:2] * weights["lda"])
        assert torch.allclose(margins[asked::2], expected, atol=1e-5)
    assert made.calibration is not None
    assert made.margin == pytest.approx(max(0.0, float(margins.sort().values[99])))


def test_calibration_says_what_is_missing() -> None:
    few = CLOUDS | {"woods": replace(CLOUDS["woods"], held_out=torch.zeros(3, WIDE.width))}
    said = calibration_shortage(few)
    assert said == "woods holds 3 questions out for calibration, 10 are needed"


def test_the_encoder_is_the_masked_mean_of_the_last_state(expert: Backbone) -> None:
    questions = ["What is tin?", "Which metal is added to the bed of Kreluvax?", "Why?"]
    encoder = BackboneEncoder(expert, expert.fingerprint, RouterSettings(batch_size=2, max_tokens=6))
    vectors = encoder.encode(questions)
    for question, vector in zip(questions, vectors, strict=True):
        ids = torch.tensor([expert.prompts.text(question)[:6]])
        mean = expert.model.model(ids).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)
    assert torch.isfinite(encoder.encode(["long " * 20_000])).all()


def test_a_bank_is_saved_and_loaded(tmp_path) -> None:
    made = cloudy(1)
    facts = made.save(tmp_path)
    files = {name: digest(tmp_path / name) for name in (BANK, STATISTICS)}
    loaded = load_bank(tmp_path, BankFacts(**json.loads(facts.model_dump_json())), files)
    assert (
        loaded.count == 200 and loaded.encoder == WIDE and loaded.held_out_count == made.held_out_count == 100
    )
    with pytest.raises(ArtifactError, match=r"lists no bank-statistics"):
        load_bank(tmp_path, facts, {BANK: files[BANK]})
    for name in ("centres", "sizes", "mean", "scatter", "held_out"):
        assert torch.equal(getattr(loaded, name), getattr(made, name))
    assert torch.allclose(made.centres.norm(dim=-1), torch.ones(6))
    vectors = cloud(1, 300, 10)[100:]
    assert torch.allclose(made.scatter / 200, torch.cov(vectors.T, correction=0), atol=1e-6)


def test_few_and_repeated_questions_make_fewer_centres() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert len(build_bank(Encoded([], vectors, vectors[:0]), SPEC, RouterSettings()).centres) == 2
    one = build_bank(Encoded([], vectors[:1], vectors[:0]), SPEC, RouterSettings())
    assert one.count == 1 and len(one.centres) == 1
    with pytest.raises(DataError, match="at least one question"):
        build_bank(Encoded([], torch.zeros(0, 2), torch.zeros(0, 2)), SPEC, RouterSettings())
    with pytest.raises(DataError, match="not finite"):
        build_bank(Encoded([], torch.full((3, 2), float("nan")), torch.zeros(0, 2)), SPEC, RouterSettings())


def test_a_share_of_the_questions_is_held_out_by_their_text(tmp_path) -> None:
    class Lengths:
        spec = SPEC

        def encode(self, questions: list[str]) -> torch.Tensor:
            return torch.tensor([[float(len(q)), 1.0] for q in questions]).view(-1, 2)

    questions = {f"question {i}": f"question {i}" for i in range(50)}
    encoded = encode_questions(questions, Lengths(), RouterSettings())
    assert len(encoded.texts) == 40 and len(encoded.held_out) == 10
    assert set(encode_questions(dict(reversed(questions.items())), Lengths(), RouterSettings()).texts) == set(
        encoded.texts
    )
    many = encode_questions({str(i): str(i) for i in range(4000)}, Lengths(), RouterSettings())
    assert len(many.held_out) == HELD_OUT
    wordings = {f"fact {i % 10} in wording {i}": f"fact {i % 10}" for i in range(50)}
    told = encode_questions(wordings, Lengths(), RouterSettings()).texts
    held = [question for question in wordings if question not in told]
    assert len(held) == 10 and {wordings[q] for q in held}.isdisjoint(
        wordings[q] for q in told
    )  # no fact on both sides
    assert len(encode_questions(questions, Lengths(), RouterSettings(held_out=0)).held_out) == 0
    encoded.save(tmp_path)
    loaded = load_questions(tmp_path)
    assert loaded.texts == encoded.texts
    assert len(loaded.nearest(torch.tensor([1.0, 0.0]), 3)) == 3


def test_a_bank_of_some_questions_is_drawn_at_random_not_from_the_files_beginning() -> None:
    class Places:
        spec = SPEC

        def encode(self, questions: list[str]) -> torch.Tensor:
            return torch.tensor([[float(question), 1.0] for question in questions]).view(-1, 2)

    ordered = {str(i): str(i) for i in range(1000)}
    chosen = encode_questions(ordered, Places(), RouterSettings(max_questions=100, held_out=0.1))
    places = torch.cat([chosen.vectors, chosen.held_out])[:, 0]
    assert len(places) == 100 and len(places.unique()) == 100
    assert 300 < float(places.mean()) < 700 and float(places.max()) > 900

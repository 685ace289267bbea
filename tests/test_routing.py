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
from gag.routing.bank import Bank, MemoryBank, Sample, load_bank
from gag.routing.building import (
    FOLDS,
    NONE,
    SAMPLE,
    Encoded,
    build_bank,
    encode_questions,
    load_questions,
    updated,
)
from gag.routing.calibration import CANDIDATES, set_hash
from gag.routing.margins import at_most
from gag.routing.query_encoder import BackboneEncoder
from gag.routing.router import Router, RouterState
from gag.routing.rules import (
    Lda,
    Ppr,
    Query,
    Statistics,
    Whitened,
    covariance_root,
    shrink,
    total_scatter,
)
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
    none = Sample(one[:0], torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    return MemoryBank(one, torch.ones(1), torch.zeros(2), 1, SPEC, torch.ones(1), torch.zeros(2, 2), none)


def cloud(place: int, count: int, seed: int, spread: float = 0.25) -> torch.Tensor:
    """Unit vectors about an axis, scattered far more along the last axes, which tell nothing."""
    noise = torch.randn(count, WIDE.width, generator=torch.Generator().manual_seed(seed))
    noise[:, 8:] *= 4
    return torch.nn.functional.normalize(torch.eye(WIDE.width)[place] + spread * noise, dim=-1)


def encoded(vectors: torch.Tensor) -> Encoded:
    """Questions that their bank can all be judged by."""
    return Encoded([], vectors, torch.arange(len(vectors)) % FOLDS)


def cloudy(place: int, seed: int = 0, count: int = 300) -> MemoryBank:
    return build_bank(encoded(cloud(place, count, 10 * place + seed)), WIDE, RouterSettings(centres=6))


def statistics_of(banks: list[Bank]) -> Statistics:
    return Statistics(banks, covariance_root(total_scatter(banks), banks))


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


def test_too_few_general_questions_fall_back_to_the_published_rule() -> None:
    none = [torch.zeros(len(BANKS["general"].centres)).int()] * 2
    judged = {name: replace(one, sample=Sample(one.centres, *none)) for name, one in BANKS.items()}
    router = Router(judged, Compass(), RouterSettings())
    assert router.rule == "ppr" and router.calibration is None
    count = len(BANKS["general"].centres)
    assert f"general has {count} questions to judge by, 10 are needed" in router.state.warning
    bare = Router(BANKS, Compass(), RouterSettings())
    assert bare.rule == "ppr" and ": centres alone, without questions" in bare.state.warning
    assert (
        Router({"general": bank("east")}, Compass(), RouterSettings()).route(["north"])[0].domain == "general"
    )


def test_closed_form_rules_see_through_scatter_that_tells_nothing() -> None:
    known = statistics_of(list(CLOUDS.values()))
    asked = torch.cat([cloud(place, 200, 77 + place) for place in range(3)])
    truth = torch.arange(3).repeat_interleave(200)
    right = {
        rule.__name__: (rule(known).scores(Query(asked, known)).argmax(1) == truth).float().mean()
        for rule in (Ppr, Whitened, Lda)
    }
    assert right["Lda"] > right["Ppr"] + 0.05 and right["Whitened"] > right["Ppr"] + 0.03


def test_lda_is_the_log_density_of_gaussians_that_share_a_covariance() -> None:
    known, asked = statistics_of(list(CLOUDS.values())), cloud(1, 50, 99)
    scatter = sum(bank.scatter.double() for bank in CLOUDS.values())
    covariance = shrink(scatter / (900 - 3), 900 - 3).float()  # pyright: ignore[reportOperatorIssue]
    gaussians = [torch.distributions.MultivariateNormal(bank.mean, covariance) for bank in known.banks]
    wanted = torch.stack([gaussian.log_prob(asked) for gaussian in gaussians], 1)
    assert torch.allclose(
        Lda(known).scores(Query(asked, known)).log_softmax(1), wanted.log_softmax(1), atol=1e-3
    )
    nearest = -2 * (
        wanted - torch.distributions.MultivariateNormal(torch.zeros(12), covariance).log_prob(torch.zeros(12))
    )
    assert torch.allclose(Query(asked, known).squared.amin(1), nearest.amin(1) - 12 / 300, rtol=1e-3)


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
    old = build_bank(encoded(vectors[:200]), WIDE, settings)
    grown = updated(old, encoded(vectors[200:]), settings)
    whole = build_bank(encoded(vectors), WIDE, settings)
    assert grown.count == 300 and torch.allclose(grown.mean, whole.mean, atol=1e-6)
    assert torch.allclose(grown.scatter, whole.scatter, atol=1e-4)
    assert float(grown.sizes.sum()) == 300 and len(grown.centres) == 6
    assert torch.equal(grown.sample.vectors, vectors) and torch.equal(grown.sample.folds, whole.sample.folds)
    sums = torch.zeros(6, 12).index_add_(
        0, grown.sample.clusters, vectors
    )  # every question in its cluster's sum
    assert torch.allclose(grown.centres * (grown.lengths * grown.sizes)[:, None], sums, atol=1e-3)
    many = replace(old, count=900, sample=build_bank(encoded(cloud(1, SAMPLE, 2)), WIDE, settings).sample)
    mixed = updated(many, encoded(cloud(2, 100, 3)), settings).sample
    assert len(mixed) == SAMPLE
    assert int((mixed.vectors[:, 2] > mixed.vectors[:, 1]).sum()) == pytest.approx(SAMPLE / 10, abs=15)


def test_the_promised_risk_holds_and_specialists_are_still_reached() -> None:
    for alpha in (0.05, 0.2):
        router = Router(CLOUDS, Cloud(), RouterSettings(alpha=alpha))
        risk = (router.judge(cloud(0, 3000, 500)).chosen > 0).float().mean()
        assert router.calibration is not None and router.calibration.promised == alpha
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
    router = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.001, max_abstention=0.5))
    assert router.calibration is not None and router.calibration.promised == pytest.approx(at_most(0, 300))
    said = router.state.warning
    assert "at most 0.4% of general questions go to specialists, not 0.1%" in said
    assert "general has 300 questions to judge by; 9700 more in general.questions" in said


def test_out_of_distribution_questions_go_to_general_however_sure_the_rule_is() -> None:
    router = Router(CLOUDS, Cloud(), RouterSettings())
    far = -cloud(1, 50, 7) + 2 * cloud(2, 50, 8)
    verdict = router.judge(torch.nn.functional.normalize(far, dim=-1) * 9)
    assert verdict.out_of_distribution.all() and (verdict.chosen == 0).all()
    assert router.route_vectors(far[:1] * 9)[0].reason == "far from every domain"
    assert router.judge(cloud(1, 200, 9)).out_of_distribution.float().mean() < 0.05


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
    margins = dict.fromkeys(state.calibration.margins, margin)
    return replace(state, calibration=replace(state.calibration, margins=margins))


def test_a_saved_calibration_is_for_its_own_set_alone(project: Project) -> None:
    made = Router(CLOUDS, Cloud(), RouterSettings(alpha=0.2)).state
    keep_state(project, made)
    loaded = load_state(project.router)
    assert loaded is not None and loaded.calibration == made.calibration and loaded.members == made.members
    assert torch.equal(loaded.total, made.total) and torch.equal(loaded.root, made.root)  # pyright: ignore
    kept = Router(CLOUDS, Cloud(), RouterSettings(), moved(loaded, 99.0))
    assert kept.margins == {"metals": 99.0, "woods": 99.0}
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
        {"margins": {"metals": float("nan")}},
        {"spread": {"outward": 1.0}},
        {"alpha": "x"},
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
    assert loaded.count == 300 and loaded.encoder == WIDE and loaded.sample_count == made.sample_count == 300
    with pytest.raises(ArtifactError, match=r"lists no bank-statistics"):
        load_bank(tmp_path, facts, {BANK: files[BANK]})
    for name in ("centres", "lengths", "sizes", "mean", "scatter"):
        assert torch.equal(getattr(loaded, name), getattr(made, name))
    for name in ("vectors", "clusters", "folds"):
        assert torch.equal(getattr(loaded.sample, name), getattr(made.sample, name))
    assert torch.allclose(made.centres.norm(dim=-1), torch.ones(6))
    assert torch.allclose(made.scatter / 300, torch.cov(cloud(1, 300, 10).T, correction=0), atol=1e-6)


def test_few_and_repeated_questions_make_fewer_centres() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert len(build_bank(encoded(vectors), SPEC, RouterSettings()).centres) == 2
    one = build_bank(encoded(vectors[:1]), SPEC, RouterSettings())
    assert one.count == 1 and len(one.centres) == 1
    with pytest.raises(DataError, match="at least one question"):
        build_bank(encoded(torch.zeros(0, 2)), SPEC, RouterSettings())
    with pytest.raises(DataError, match="not finite"):
        build_bank(encoded(torch.full((3, 2), float("nan"))), SPEC, RouterSettings())


def test_wordings_of_one_question_are_left_out_together(tmp_path) -> None:
    class Lengths:
        spec = SPEC

        def encode(self, questions: list[str]) -> torch.Tensor:
            return torch.tensor([[float(len(q)), 1.0] for q in questions]).view(-1, 2)

    wordings = {f"fact {i % 10} in wording {i}": f"fact {i % 10}" for i in range(50)}
    made = encode_questions(wordings, Lengths(), RouterSettings())
    folds = dict(zip(made.texts, made.folds.tolist(), strict=True))
    assert (
        made.texts == list(wordings)
        and set(folds.values()) <= set(range(FOLDS))
        and len(set(folds.values())) > 2
    )
    assert len({(wordings[question], fold) for question, fold in folds.items()}) == 10
    again = encode_questions(dict(reversed(wordings.items())), Lengths(), RouterSettings())
    assert dict(zip(again.texts, again.folds.tolist(), strict=True)) == folds
    many = encode_questions({str(i): str(i) for i in range(4000)}, Lengths(), RouterSettings())
    assert len(many.texts) == 4000 and int((many.folds != NONE).sum()) == SAMPLE
    assert (
        int(
            (
                encode_questions(
                    {str(i): str(i) for i in range(4000)}, Lengths(), RouterSettings(), 9000
                ).folds
                != NONE
            ).sum()
        )
        == 4000
    )
    made.save(tmp_path)
    loaded = load_questions(tmp_path)
    assert loaded.texts == made.texts
    assert len(loaded.nearest(torch.tensor([1.0, 0.0]), 3)) == 3


def test_a_bank_of_some_questions_is_drawn_at_random_not_from_the_files_beginning() -> None:
    class Places:
        spec = SPEC

        def encode(self, questions: list[str]) -> torch.Tensor:
            return torch.tensor([[float(question), 1.0] for question in questions]).view(-1, 2)

    ordered = {str(i): str(i) for i in range(1000)}
    chosen = encode_questions(ordered, Places(), RouterSettings(max_questions=100))
    places = chosen.vectors[:, 0]
    assert len(places) == 100 and len(places.unique()) == 100
    assert 300 < float(places.mean()) < 700 and float(places.max()) > 900

"""Banks judged by questions that they have not seen, margins from a tail, and faults of questions."""

import math

import pytest
import torch

from gag.project.settings import RouterSettings
from gag.routing.bank import Bank, MemoryBank
from gag.routing.building import FOLDS, Encoded, build_bank
from gag.routing.doubts import doubts
from gag.routing.folds import judge
from gag.routing.margins import (
    at_most,
    capped,
    margin_over_general,
    offsets,
    risk_and_coverage,
    tail_of,
    threshold,
)
from gag.routing.router import Router
from gag.routing.rules import RULES, Query, Statistics, covariance_root, total_scatter
from gag.routing.temperatures import GRID_SIZE, GRID_STEP, SUREST, log_losses, temperature
from tests.test_routing import CLOUDS, WIDE, Cloud, cloud, cloudy, encoded

SETTINGS = RouterSettings(centres=6)


def bank_of(vectors: torch.Tensor) -> MemoryBank:
    return build_bank(encoded(vectors), WIDE, SETTINGS)


def test_a_fold_is_taken_out_of_all_sums_exactly() -> None:
    """Scores of left out questions are those of banks that are made without them (k-means has no choice)."""
    settings = RouterSettings(centres=1)
    parts = [cloud(place, 40, place) for place in range(3)]
    banks: list[Bank] = [build_bank(encoded(part), WIDE, settings) for part in parts]
    judged = judge(banks, total_scatter(banks))
    assert judged.truth.tolist() == [0] * 40 + [1] * 40 + [2] * 40
    for fold in range(FOLDS):
        kept = [part[torch.arange(40) % FOLDS != fold] for part in parts]
        without: list[Bank] = [build_bank(encoded(part), WIDE, settings) for part in kept]
        statistics = Statistics(without, covariance_root(total_scatter(without), without))
        asked = torch.cat([part[torch.arange(40) % FOLDS == fold] for part in parts])
        query, rows = Query(asked, statistics), judged.places % FOLDS == fold
        for name, rule in RULES.items():
            assert torch.allclose(judged.scores[name][rows], rule(statistics).scores(query), atol=1e-3), name
        assert torch.allclose(judged.squared[rows], query.squared, rtol=1e-3, atol=1e-3)


def test_a_bank_judges_no_question_by_itself() -> None:
    """Pure noise has no domain: unseen it is a guess, by banks that have seen it almost all is right."""
    noise = torch.nn.functional.normalize(
        torch.randn(400, 12, generator=torch.Generator().manual_seed(3)), dim=1
    )
    banks: list[Bank] = [
        build_bank(encoded(half), WIDE, RouterSettings(centres=100)) for half in noise.chunk(2)
    ]
    judged = judge(banks, total_scatter(banks))
    unseen = (judged.scores["ppr"].argmax(1) == judged.truth).float().mean()
    seen = RULES["ppr"](Statistics(banks)).scores(Query(noise, Statistics(banks))).argmax(1)
    assert unseen < 0.6 and (seen == torch.arange(2).repeat_interleave(200)).float().mean() > 0.8


def test_a_domain_of_one_question_is_routed_to_and_said_not_to_be_judged() -> None:
    one = Encoded([], cloud(3, 1, 5, 0.05), torch.tensor([0]))
    router = Router(CLOUDS | {"stones": build_bank(one, WIDE, SETTINGS)}, Cloud(), SETTINGS)
    assert router.calibration is not None and router.calibration.questions["stones"] == 0
    assert "stones has too few questions to be judged" in router.calibration.notes
    assert math.isfinite(router.margins["stones"]) and 0 <= router.calibration.coverage["metals"] <= 1
    verdict = router.judge(cloud(3, 30, 8, 0.05))
    assert (verdict.scores.argmax(1) == router.names.index("stones")).float().mean() > 0.8


@pytest.mark.parametrize("lone", ["general", "metals"])
def test_one_question_alone_judges_nothing_and_the_published_rule_routes(lone: str) -> None:
    """Ten wordings of one question lie in one fold: without it, nothing of the bank is left."""
    wordings = Encoded([], cloud(3, 12, 5, 0.05), torch.zeros(12, dtype=torch.long))
    banks = {name: CLOUDS[name] for name in ("general", "metals")}
    router = Router(banks | {lone: build_bank(wordings, WIDE, SETTINGS)}, Cloud(), SETTINGS)
    assert router.calibration is None and router.rule == "ppr"
    assert "has one question alone" in router.state.warning
    chosen = router.judge(cloud(3, 30, 8, 0.05)).chosen
    assert (chosen == router.names.index(lone)).float().mean() > 0.8


def test_two_domains_of_the_same_questions_are_said_to_be_the_same() -> None:
    made = Router(CLOUDS | {"copies": CLOUDS["metals"]}, Cloud(), SETTINGS).calibration
    assert made is not None
    assert any(
        "copies" in note and "metals" in note and "hardly be told apart" in note for note in made.notes
    )


@pytest.mark.parametrize(
    ("owner", "other"), [("general", "metals"), ("metals", "general"), ("woods", "metals")]
)
def test_a_tenth_of_strays_is_found_and_named(owner: str, other: str) -> None:
    places = {"general": 0, "metals": 1, "woods": 2}
    mixed = torch.cat([cloud(places[owner], 270, 31, 0.1), cloud(places[other], 30, 32, 0.1)])
    banks = {name: bank_of(cloud(place, 300, place + 40, 0.1)) for name, place in places.items()}
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    made = Router(banks | {owner: bank_of(mixed[order])}, Cloud(), SETTINGS).calibration
    assert made is not None
    found = [
        note
        for note in made.notes
        if note.split(" questions of ")[1:2] and note.split(" of ")[2].startswith(owner)
    ]
    assert len(found) == 1 and f"({other} " in found[0], made.notes
    assert 25 <= int(found[0].split()[0]) <= 31
    clean = Router(banks, Cloud(), SETTINGS).calibration
    assert clean is not None and clean.notes == []


def test_priors_that_contradict_the_questions_are_said() -> None:
    made = Router(CLOUDS, Cloud(), RouterSettings(centres=6, priors={"metals": 1e9})).calibration
    assert made is not None and any("router.priors contradict" in note for note in made.notes)
    mild = Router(CLOUDS, Cloud(), RouterSettings(centres=6, priors={"metals": 1.5})).calibration
    assert mild is not None and mild.notes == []


def test_the_tail_gives_the_quantile_of_exponential_values_and_varies_less_than_an_order_statistic() -> None:
    draws = -torch.rand(1000, 1200, generator=torch.Generator().manual_seed(0)).log()
    tails = torch.tensor([tail_of(draw)[0].exceeded_by(0.01) for draw in draws])
    order = draws.sort(1, descending=True).values[:, 12]
    assert tails.mean() == pytest.approx(math.log(100), abs=0.03)
    assert tails.std() < 0.75 * order.std()
    tail = tail_of(draws[0])[0]
    assert tail.exceeding(tail.exceeded_by(0.03)) == pytest.approx(0.03)


@pytest.mark.parametrize(("count", "alpha"), [(100, 0.02), (1000, 0.01), (1000, 0.05)])
def test_a_threshold_keeps_its_share_seventeen_times_of_twenty(count: int, alpha: float) -> None:
    draws = -torch.rand(1000, count, generator=torch.Generator().manual_seed(0)).log()
    exceed = torch.tensor([math.exp(-threshold(draw, alpha)) for draw in draws])
    assert float((exceed <= alpha).float().mean()) == pytest.approx(0.85, abs=0.03)


def test_a_threshold_is_finite_for_few_values_and_a_large_share_is_read_from_them() -> None:
    assert threshold(torch.arange(10.0), 0.5) == pytest.approx(4.0)
    assert math.isfinite(threshold(torch.tensor([1.0]), 0.01))


@pytest.mark.parametrize(("count", "share"), [(400, 0.02), (1000, 0.01)])
def test_what_a_count_speaks_for_holds_seventeen_times_of_twenty(count: int, share: float) -> None:
    hits = torch.arange(count + 1.0)
    chance = torch.distributions.Binomial(count, torch.tensor(share)).log_prob(hits).exp()
    held = torch.tensor([at_most(int(hit), count) >= share for hit in hits])
    assert 0.78 < float(chance[held].sum()) < 0.92  # counts are whole numbers
    assert 0.05 < at_most(0, 10) < 0.2


def test_each_door_has_its_own_offset_and_one_of_few_questions_the_common_one() -> None:
    """Densities exp(-(m - c)^2 / 2) of specialists and exp(-(m + c)^2 / 2) of general have log odds 2 c m."""
    generator = torch.Generator().manual_seed(1)
    apart = 0.5  # so that the log odds are the margin itself
    count, shift = 2000, 1.5
    general = torch.randn(count, generator=generator) - apart
    own = torch.randn(count, generator=generator) + apart
    moved = torch.cat([general, own, general - shift, own - shift])
    doors = torch.cat([torch.ones(2 * count), torch.full((2 * count,), 2)]).long()
    truth = torch.cat(
        [torch.zeros(count), torch.ones(count), torch.zeros(count), torch.full((count,), 2)]
    ).long()
    found = offsets(moved, doors, truth, 4)
    assert found[0] == 0 and float(found[2] - found[1]) == pytest.approx(shift, abs=0.15)
    assert found[1] < found[3] < found[2]  # nobody came to the third door
    few = torch.cat([moved, torch.tensor([-3.0])])
    lone = offsets(few, torch.cat([doors, torch.tensor([3])]), torch.cat([truth, torch.tensor([3])]), 4)
    assert abs(float(lone[3] - found[3])) < 1.2


def test_margins_that_cost_too_much_are_lowered_and_the_risk_is_said() -> None:
    """General questions that look like metals: the promise would shut the door of metals alone."""
    near = torch.cat([cloud(0, 280, 3), cloud(1, 20, 4)])
    banks = CLOUDS | {
        "general": bank_of(near[torch.randperm(300, generator=torch.Generator().manual_seed(0))])
    }
    router = Router(banks, Cloud(), SETTINGS)
    made = router.calibration
    assert made is not None and made.promised > made.alpha == 0.01
    assert made.promised == at_most(made.beyond, 300)
    assert "would cost more than 3% of some domain's questions" in router.state.warning
    reached = (router.judge(cloud(1, 1000, 501)).chosen > 0).float().mean()
    assert reached > 0.9 and (router.judge(cloud(2, 1000, 502)).chosen > 0).float().mean() > 0.9
    strict = Router(banks, Cloud(), RouterSettings(centres=6, max_abstention=0.9))
    assert strict.margins["metals"] > router.margins["metals"]
    assert (strict.judge(cloud(1, 1000, 501)).chosen > 0).float().mean() < reached


def test_thresholds_are_lowered_to_what_may_be_given_up_and_shares_are_counted() -> None:
    """Margins 20 - e, e exponential: a share s of them lies below 20 + log s."""
    draws = (torch.arange(5000.0) + 0.5) / 5000
    scored, truth = 20 + draws.log(), torch.ones(5000).long()
    found = capped(torch.tensor([0.0, 19.0]), scored, truth, 0.03)
    assert found.tolist() == [0.0, pytest.approx(20 + math.log(0.03), abs=0.1)]
    assert capped(torch.tensor([0.0, 3.0]), scored, truth, 0.03)[1] == 3.0
    lost = capped(torch.tensor([0.0, 19.0]), scored - 18, truth, 0.03)  # a share e^-2 is general's anyway
    assert lost[1] == pytest.approx(2 + math.log(math.exp(-2) + 0.03), abs=0.1)
    most = capped(torch.tensor([0.0, 19.0]), scored - 20, truth, 0.03)  # all of them are
    assert most[1] == 0.0
    half = capped(torch.tensor([0.0, 19.9]), scored, truth, 0.5)  # read from the margins themselves
    assert half[1] == pytest.approx(20 + math.log(0.5), abs=0.1)
    few, doors = torch.tensor([-1.0, 0.5, 1.0, 1.5, 1.0]), torch.ones(5).long()
    risk, coverage = risk_and_coverage(torch.tensor([0.0, 1.2]), few, doors, torch.tensor([1, 1, 1, 1, 0]))
    assert risk == 0 and coverage.tolist() == [0.25]
    margins, places = margin_over_general(torch.tensor([[1.0, 3.0, 2.0], [4.0, 1.0, 3.0]]))
    assert margins.tolist() == [2.0, -1.0] and places.tolist() == [1, 2]


def test_the_curve_shows_that_a_smaller_risk_costs_coverage() -> None:
    made = Router(CLOUDS, Cloud(), SETTINGS).calibration
    assert made is not None
    curve = made.curve
    assert curve.risk == sorted(curve.risk) and curve.coverage == sorted(curve.coverage)
    assert all(least <= mean for least, mean in zip(curve.least, curve.coverage, strict=True))
    here = curve.alpha.index(made.alpha)
    odd = Router(CLOUDS, Cloud(), RouterSettings(centres=6, alpha=0.03)).calibration
    assert odd is not None and 0.03 in odd.curve.alpha
    assert curve.risk[here] == pytest.approx(made.beyond / 300, abs=1e-4)


def test_small_domains_are_not_further_off_for_their_size() -> None:
    """A mean of thirty questions is uncertain: what that adds to distances is taken off again."""
    banks = [cloudy(0), bank_of(cloud(1, 30, 11)), cloudy(2)]
    statistics = Statistics(banks, covariance_root(total_scatter(banks), banks))
    large = Statistics([banks[0], cloudy(1), banks[2]], statistics.root)
    asked = cloud(1, 2000, 77)
    assert float(Query(asked, statistics).squared[:, 1].mean()) == pytest.approx(
        float(Query(asked, large).squared[:, 1].mean()), abs=0.3
    )


def test_a_thousandth_of_the_temperatures_is_enough() -> None:
    """The bisection finds what trying every temperature finds."""
    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.1, 1.0, 10.0, 300.0):
        scores = (sharpness * torch.randn(200, 5, generator=generator)).double()
        truth = (scores + sharpness * torch.randn(200, 5, generator=generator)).argmax(1)
        best = scores.topk(2, dim=1).values
        lowest = float((best[:, 0] - best[:, 1]).median()) / SUREST
        tried = [lowest * GRID_STEP**i for i in range(GRID_SIZE)]
        wanted = min(tried, key=lambda t: float(log_losses(scores / t, truth).mean()))
        assert temperature(scores, truth) == wanted


def test_doubts_are_said_of_many_questions_alone() -> None:
    scores = torch.tensor([[9.0, 0.0]] * 99 + [[0.0, 9.0]] + [[0.0, 9.0]] * 100)
    truth = torch.tensor([0] * 100 + [1] * 100)
    assert doubts(["general", "metals"], scores, torch.zeros(2), truth) == []


def test_far_out_small_margins_count_for_nothing_and_very_far_out_all() -> None:
    router = Router(CLOUDS, Cloud(), SETTINGS)
    made = router.calibration
    assert made is not None and 1 < made.spread.near < made.spread.far and made.spread.sure > 0
    at = torch.tensor([0.99, 1.01, 1.01, 1.01, 2.49, 2.51, 2.51]) * made.spread.near
    sure = made.spread.sure
    had = torch.tensor([0.9 * sure, 0.9 * sure, 1.1 * sure, -5.0, 99.0, 99.0, -5.0])
    assert torch.equal(made.spread.counted(at, had), had * torch.tensor([1, 0, 1, 1, 1, 0, 1]))
    verdict = router.judge(torch.cat([cloud(1, 100, 64), 9 * cloud(1, 3, 65)]))
    assert verdict.out_of_distribution.tolist() == [False] * 100 + [True] * 3
    assert (verdict.chosen[100:] == 0).all() and (verdict.margins[100:] <= 0).all()

"""Requests join and leave a running batch between its steps, and say what they say alone."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gag.models.backbone import Backbone
from gag.models.generation import TransformersGenerator
from gag.models.language_model import FailedRequestError, Generation, Request, generate
from gag.models.loading import load_backbone
from gag.models.sampling import seeded
from gag.project.settings import ModelSettings
from tests.conftest import make_model

QUESTIONS = [f"What is {'near ' * (i % 5)}number {i}?" for i in range(12)]


def asked(model: Backbone, place: int, new: int = 6, **more) -> Request:
    return Request(model.prompts.plain(QUESTIONS[place]), new, **more)


def run(generator: TransformersGenerator, arrivals: dict[int, list[Request]]) -> dict[int, list[int]]:
    """Step to the end; `arrivals` join before the steps of their numbers -> what each wrote."""
    wrote: dict[int, list[int]] = {}
    step = 0
    while generator.unfinished or step <= max(arrivals):
        for number in generator.add(arrivals.get(step, [])):
            wrote[number] = []
        for token in generator.step():
            if token.finish != "stop":
                wrote[token.request].append(token.id)
        step += 1
    return wrote


def alone(model: Backbone, request: Request) -> Generation:
    return generate(model, [request])[0]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 5))
def test_whenever_a_row_joins_it_says_what_it_says_alone(base: Backbone, plan, rows: int) -> None:
    arrivals: dict[int, list[Request]] = {}
    expected = []
    for place, (step, new) in sorted(enumerate(plan), key=lambda one: one[1][0]):
        sampling = seeded(f"{place}", 7, new, 0.9, 0.95, 30) if place % 3 == 0 else None
        request = asked(base, place, new, sampling=sampling)
        arrivals.setdefault(step, []).append(request)
        expected.append(alone(base, request).ids)
    assert list(run(base.generator(rows=rows, prefill=60), arrivals).values()) == expected


def test_a_row_takes_the_place_of_one_that_left_and_columns_are_cut_off(base: Backbone) -> None:
    generator = base.generator(rows=3)
    requests = [asked(base, i % 12, 3 + i % 4) for i in range(60)]
    wrote = run(generator, {i: [request] for i, request in enumerate(requests)})
    assert [wrote[i] for i in range(60)] == [alone(base, request).ids for request in requests]
    generator.add(requests[:1])
    generator.step()
    assert generator._batches[0].slots.mask.shape[1] <= 2 * len(requests[0].prompt)


def test_a_dropped_request_frees_its_place_in_the_next_step(base: Backbone) -> None:
    generator = base.generator(rows=1)
    first, second, third = generator.add([asked(base, 0, 50), asked(base, 1), asked(base, 2)])
    assert [token.request for token in generator.step()] == [first]
    generator.drop([first, second])
    assert [token.request for token in generator.step()] == [third]
    assert generator.unfinished == 1 and generator.running == 1
    generator.drop([third])
    assert generator.unfinished == 0 and generator.step() == []


def test_prompts_join_within_a_budget_of_tokens(base: Backbone) -> None:
    requests = [asked(base, 0, 20) for _ in range(6)]
    generator = base.generator(prefill=2 * len(requests[0].prompt))
    generator.add(requests)
    assert [len(generator.step()) for _ in range(4)] == [2, 4, 6, 6]
    generator = base.generator(tokens=2 * (len(requests[0].prompt) + 20))
    generator.add(requests)
    assert [len(generator.step()) for _ in range(3)] == [2, 2, 2]


def test_a_prefix_is_run_once_and_changes_nothing(base: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [base.prompts.plain(question) for question in QUESTIONS]
    requests = [
        Request(ids[cut:], 6, prefix=tuple(ids[:cut]))
        for ids, cut in zip(rows, [3, 3, 0, 5] * 3, strict=True)
    ]
    generator, seen = base.generator(), []
    original = generator._run
    monkeypatch.setattr(generator, "_run", lambda e, *o: seen.append(tuple(e.shape[:2])) or original(e, *o))
    wrote = run(generator, {0: requests[:8], 2: requests[8:]})
    assert list(wrote.values()) == [alone(base, Request(ids, 6)).ids for ids in rows]
    assert sum(rows == 1 for rows, _ in seen) == len({request.prefix for request in requests} - {()})


def test_the_likeliest_tokens_are_told_where_they_are_asked_for(base: Backbone) -> None:
    generator = base.generator()
    few, none = generator.add([asked(base, 0, 2, top=3), asked(base, 1, 2)])
    said = {token.request: token for token in generator.step()}
    assert said[none].top is None and said[few].top is not None
    pairs = said[few].top.pairs()
    assert len(pairs) == 3 and pairs[0] == (said[few].id, pytest.approx(said[few].log_probability, abs=1e-5))
    logits = base.logits(base.embed([0])).shape[-1]
    row = base.model(torch.tensor([asked(base, 0).prompt])).logits[0, -1].log_softmax(-1).topk(3)
    assert [id for id, _ in pairs] == row.indices.tolist() and logits > 3
    assert [chance for _, chance in pairs] == pytest.approx(row.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_rows_begin_again_where_memory_ends(base: Backbone, monkeypatch, capsys, at: int) -> None:
    requests = [asked(base, i, 7, sampling=seeded(f"{i}", 3, 7, 1.0, 1.0, 0)) for i in range(8)]
    generator, calls = base.generator(), []
    original = generator._run

    def run_out(embeds, *others):
        calls.append(len(embeds))
        if len(embeds) > 5 and len(calls) > at:
            raise torch.OutOfMemoryError("full")
        return original(embeds, *others)

    monkeypatch.setattr(generator, "_run", run_out)
    wrote = run(generator, {0: requests})
    assert [wrote[i] for i in range(8)] == [alone(base, request).ids for request in requests]
    assert "out of memory with 8 prompts at once: going on with 4" in capsys.readouterr().err
    monkeypatch.setattr(generator, "_run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    generator.add(requests[:1])
    with pytest.raises(FailedRequestError, match="one prompt does not fit in memory"):
        generator.step()


@pytest.mark.parametrize("window", [4, 6])
def test_rows_of_a_model_with_sliding_windows_join_too(tmp_path, window: int) -> None:
    shape = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    folder = make_model(tmp_path / "sliding", 32, 3, **shape)
    model = load_backbone(ModelSettings(model=str(folder)), tmp_path)
    assert model.model.config.layer_types == ["full_attention", "sliding_attention"]
    requests = [asked(model, i, 9) for i in range(8)]
    stock = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        out = model.model.generate(ids, do_sample=False, max_new_tokens=9)[0, ids.shape[1] :].tolist()
        stock.append(out[: out.index(model.prompts.end)] if model.prompts.end in out else out)
    wrote = run(model.generator(rows=3), {0: requests[:2], 2: requests[2:5], 3: requests[5:]})
    assert [wrote[i] for i in range(8)] == stock


def test_a_generator_that_nobody_holds_is_gone_with_its_keys_and_values(base: Backbone) -> None:
    """Without waiting for the collector of cycles, which counts objects and not their bytes."""
    generator = base.generator()
    generator.add([asked(base, 0, 4), Request([5, 6], 4, prefix=(7, 8))])
    generator.step()
    held = weakref.ref(generator), weakref.ref(generator._batches[0].slots.cache)
    gc.disable()
    try:
        del generator
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()

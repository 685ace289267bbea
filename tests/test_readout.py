"""Reading an expert: batched is single, states are a plain forward's, stores go on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gag.errors import ArtifactError, SettingsError
from gag.models.backbone import Backbone
from gag.models.batching import in_length_batches, length_batches
from gag.models.sampling import choose, seeded
from gag.project.hyperparameters import ReadoutSettings
from gag.project.rows import Example
from gag.readout.states import Readout, check_layers, pool, read, write
from gag.readout.store import Shard, close_store, open_store, read_store, write_parts
from tests.conftest import Alone

QUESTIONS = [
    "What is tin?",
    "Which metal is added to the bed of Kreluvax?",
    "Why?",
    "Name the glow of zinc.",
    "x",
]
SETTINGS = ReadoutSettings(layers=(-1, 1), pooling="mean", max_new_tokens=5, batch_tokens=60)
EXAMPLES = [Example(str(i), question, ("a",), str(i)) for i, question in enumerate(QUESTIONS)]


def test_batched_is_single_and_keeps_the_order(expert: Backbone) -> None:
    batched = read(Alone(expert), "", QUESTIONS, "Say.", SETTINGS)
    singles = [read(Alone(expert), "", [question], "Say.", SETTINGS) for question in QUESTIONS]
    assert batched.texts == [single.texts[0] for single in singles]
    assert batched.slots.shape == (5, 1, 2, 24)
    assert torch.allclose(batched.slots, torch.cat([single.slots for single in singles]), atol=1e-5)


def test_cached_decoding_is_plain_decoding(expert: Backbone) -> None:
    prompt = expert.prompts.ask_expert(QUESTIONS[1], "Say.")
    ids = list(prompt)
    for _ in range(5):
        ids.append(int(expert.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in expert.stops:
            ids.pop()
            break
    assert write(expert, QUESTIONS[1:2], [prompt], SETTINGS)[0][0] == ids[len(prompt) :]


def test_states_are_those_of_the_written_tokens(expert: Backbone) -> None:
    prompts = [expert.prompts.ask_expert(question, "Say.") for question in QUESTIONS]
    written = [[7, 8, 9], [10], [], [11, 12], [13]]
    states = expert.read_states(prompts, written, (0, 1, -1))
    for prompt, ids, rows in zip(prompts, written, states, strict=True):
        hidden = expert.model.model(torch.tensor([prompt + ids]), output_hidden_states=True)
        expected = torch.stack([hidden.hidden_states[k][0] for k in (0, 1, -1)], 1)[-max(1, len(ids)) :]
        assert rows.shape == expected.shape
        assert torch.allclose(rows, expected, atol=1e-5)
        assert torch.equal(hidden.hidden_states[-1], hidden.last_hidden_state)
    assert torch.allclose(states[0][:, 0], expert.embed(written[0]))


def test_nothing_written_reads_the_prompts_last_token(expert: Backbone) -> None:
    readout = read(
        Alone(expert), "", QUESTIONS[:2], "Say.", SETTINGS.model_copy(update={"max_new_tokens": 0})
    )
    assert readout.empty == [True, True] and readout.texts == ["", ""]
    last = expert.read_states([expert.prompts.ask_expert(QUESTIONS[1], "Say.")], [[]], (-1, 1))[0]
    assert torch.allclose(readout.slots[1], last, atol=1e-5)


def test_pooling() -> None:
    states = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(pool(states, ReadoutSettings(pooling="last")), states[2:])
    assert torch.equal(pool(states, ReadoutSettings(pooling="mean")), states[1:2])


@pytest.mark.parametrize("kind", ["mean", "norm", "relative"])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 75])
def test_segments_are_pooled_by_the_published_formulas(kind: str, count: int) -> None:
    states = torch.randn(count, 2, 6, generator=torch.Generator().manual_seed(count)) * 4
    pooled = pool(states, ReadoutSettings(pooling=kind, slots=4, pooling_temperature=2.0))
    bounds = np.round(np.linspace(0, count, 5)).astype(int)
    for s in range(4):
        rows = states[bounds[s] : bounds[s + 1]]
        if len(rows) == 0:
            rows = states[min(count - 1, bounds[s])][None]
        for layer in range(2):
            norms = np.array([float(row.norm()) for row in rows[:, layer]])
            scores = {"mean": 0 * norms, "norm": norms / 2, "relative": norms / norms.mean() / 2}[kind]
            weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            expected = sum(w * row for w, row in zip(weights, rows[:, layer].numpy(), strict=True))
            assert np.allclose(pooled[s, layer].numpy(), expected, atol=1e-4)
    one = pool(states, ReadoutSettings(pooling=kind, slots=1))
    assert torch.allclose(one[0], states.mean(0), atol=1e-6)


def test_layers_above_the_highest_read_one_are_not_run(expert: Backbone) -> None:
    ran: list[int] = []
    before = [len(m._forward_hooks) for m in expert.decoder_layers]
    handles = [
        m.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, m in enumerate(expert.decoder_layers)
    ]
    prompts = [expert.prompts.ask_expert(QUESTIONS[0], "Say.")]
    for layers, expected in [((1,), [0]), ((0,), []), ((-2, 0), [0]), ((-1,), [0, 1]), ((2, 1), [0, 1])]:
        ran.clear()
        expert.read_states(prompts, [[7]], layers)
        assert ran == expected
    for handle in handles:
        handle.remove()
    assert [len(m._forward_hooks) for m in expert.decoder_layers] == before


def test_sampling_depends_on_the_question_alone(expert: Backbone) -> None:
    hot = SETTINGS.model_copy(update={"temperature": 1.5, "top_k": 50, "top_p": 0.95, "max_new_tokens": 12})
    together = read(Alone(expert), "", QUESTIONS, "Say.", hot.model_copy(update={"batch_tokens": 4096}))
    alone = [read(Alone(expert), "", [question], "Say.", hot) for question in reversed(QUESTIONS)]
    assert together.texts == [one.texts[0] for one in reversed(alone)]
    other = read(Alone(expert), "", QUESTIONS, "Say.", hot.model_copy(update={"seed": 1}))
    assert other.texts != together.texts


def test_seeded_sampling_follows_the_distribution() -> None:
    count, logits = 4000, torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    samplings = [seeded(f"question {i}", 7, 1, 0.7, 1.0, 3) for i in range(count)]
    chosen = choose(logits.expand(count, -1), samplings, [0] * count)
    expected = (logits[:3] / 0.7).softmax(0)
    shares = torch.bincount(chosen, minlength=5) / count
    assert torch.allclose(shares[:3], expected, atol=0.03) and shares[3:].sum() == 0
    narrow = choose(
        logits.expand(count, -1), [seeded(f"{i}", 7, 1, 1.0, 0.6, 0) for i in range(count)], [0] * count
    )
    assert set(narrow.tolist()) == {0, 1}  # 0.58 is not 0.6 yet, so the second token is kept too
    mixed = choose(logits.expand(3, -1), [None, samplings[0], None], [0] * 3)
    assert mixed.tolist() == [0, int(chosen[0]), 0]
    assert seeded("question", 7, 1, 0.0, 1.0, 3) is None


def test_batches_keep_the_token_budget() -> None:
    batches = length_batches([5, 1, 9, 5, 30, 2], 20)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches == [[1, 5, 0, 3], [2], [4]]
    assert length_batches([5, 1, 9], rows=2) == [[1, 0], [2]] and length_batches([]) == []
    assert in_length_batches(["ccc", "a", "bb"], lambda some: [text * 2 for text in some], rows=1) == [
        "cccccc",
        "aa",
        "bbbb",
    ]


def test_out_of_memory_goes_on_with_smaller_batches(
    expert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def few(self: Backbone, prompts: list[list[int]], *args: Any) -> list[torch.Tensor]:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return whole(self, prompts, *args)

    expected, whole = read(Alone(expert), "", QUESTIONS, "Say.", SETTINGS), Backbone.read_states
    monkeypatch.setattr(Backbone, "read_states", few)
    roomy = SETTINGS.model_copy(update={"batch_tokens": 4096})
    got = read(Alone(expert), "", QUESTIONS, "Say.", roomy)
    assert max(sizes) == 5 and got.texts == expected.texts
    assert torch.allclose(got.slots, expected.slots, atol=1e-5)
    none = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())  # noqa: E731
    monkeypatch.setattr(Backbone, "read_states", none)
    with pytest.raises(SettingsError, match="one text alone does not fit"):
        read(Alone(expert), "", QUESTIONS, "Say.", roomy)


def test_shards_write_what_one_process_writes(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        assert not close_store(tmp_path / "s", "k", {}, EXAMPLES)
        open_store(tmp_path / "s", "k", len(EXAMPLES), 3)
        write_parts(tmp_path / "s", EXAMPLES, fake, lambda n: None, Shard(index, 3))
    assert close_store(tmp_path / "s", "k", {}, EXAMPLES)
    assert len(list((tmp_path / "s").glob("*.safetensors"))) == 3  # a part for each
    store(tmp_path / "one")
    assert read_store(tmp_path / "s").ids == read_store(tmp_path / "one").ids
    assert torch.equal(read_store(tmp_path / "s").slots, read_store(tmp_path / "one").slots)


@pytest.mark.parametrize(("layers", "words"), [((3,), "has 2 layers"), ((-4,), "from -3 to 2")])
def test_layers_that_cannot_be_read_are_refused(
    expert: Backbone, layers: tuple[int, ...], words: str
) -> None:
    check_layers(expert.name, expert.layers, (-3,))
    with pytest.raises(SettingsError, match=words):
        check_layers(expert.name, expert.layers, layers)


def fake(examples: list[Example]) -> Readout:
    questions = [e.question for e in examples]
    slots = torch.tensor([[float(len(question))] for question in questions])[:, None, None]
    return Readout(
        slots, list(questions), [False] * len(questions), [()] * len(questions), [[1]] * len(questions)
    )


def store(folder: Path, read=fake, key: str = "k") -> None:
    open_store(folder, key, len(EXAMPLES), workers=3)  # parts of two rows
    write_parts(folder, EXAMPLES, read, lambda n: None)
    assert close_store(folder, key, {}, EXAMPLES)


def test_a_store_is_read_back_in_order(tmp_path: Path) -> None:
    store(tmp_path / "s")
    stored = read_store(tmp_path / "s", "k")
    assert stored.ids == [e.id for e in EXAMPLES]
    assert stored.slots.flatten().tolist() == [len(q) for q in QUESTIONS]
    assert len(list((tmp_path / "s").glob("*.safetensors"))) == 3
    rows = (tmp_path / "s" / "part-00001.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["text"] == QUESTIONS[2]


def test_a_store_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked: list[str] = []

    def dies(examples: list[Example]) -> Readout:
        if EXAMPLES[2] in examples:
            raise KeyboardInterrupt
        return fake(examples)

    def counts(examples: list[Example]) -> Readout:
        asked.extend(e.question for e in examples)
        return fake(examples)

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "s", dies)
    with pytest.raises(ArtifactError):
        read_store(tmp_path / "s")
    store(tmp_path / "s", counts)
    assert asked == QUESTIONS[2:]
    store(tmp_path / "s", counts, key="other")
    assert asked == QUESTIONS[2:] + QUESTIONS


def test_any_text_is_read_back(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\u0085d\re"
    examples = [Example("odd", odd, ("a",), "odd")]
    open_store(tmp_path / "s", "k", 1)
    write_parts(tmp_path / "s", examples, fake, lambda n: None)
    close_store(tmp_path / "s", "k", {}, examples)
    assert read_store(tmp_path / "s", "k").ids == ["odd"]


def test_harmed_or_foreign_stores_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "s")
    with pytest.raises(ArtifactError, match="other inputs"):
        read_store(tmp_path / "s", "another")
    part = tmp_path / "s" / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut short"):
        read_store(tmp_path / "s", "k")


@pytest.mark.parametrize("harmed", ["part-00001.safetensors", "part-00001.jsonl"])
def test_a_harmed_part_is_read_again(tmp_path: Path, harmed: str) -> None:
    store(tmp_path / "s")
    whole = read_store(tmp_path / "s", "k")
    path = tmp_path / "s" / harmed
    path.write_bytes(path.read_bytes()[:-2] + b"0}")
    asked: list[str] = []

    def counts(examples: list[Example]) -> Readout:
        asked.extend(e.question for e in examples)
        return fake(examples)

    store(tmp_path / "s", counts)
    assert asked == QUESTIONS[2:4]
    again = read_store(tmp_path / "s", "k")
    assert again.ids == whole.ids and again.slots.equal(whole.slots)


def test_an_unreadable_manifest_reads_everything_again(tmp_path: Path) -> None:
    store(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_bytes(b"{")
    store(tmp_path / "s")
    assert read_store(tmp_path / "s", "k").ids == [e.id for e in EXAMPLES]

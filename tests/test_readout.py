"""Reading an expert: batched is single, states are those of a plain forward, stores go on where they stopped."""

import json
from pathlib import Path

import pytest
import torch

from gag.backbone import Backbone
from gag.config import ReadoutSettings
from gag.errors import ArtifactError, SettingsError
from gag.readout import Readout, check_layers, pool, read, read_all, read_states, write
from gag.readout_store import read_store, write_store
from gag.records import Example

QUESTIONS = ["What is tin?", "Which metal is added to the bed of Kreluvax?", "Why?", "Name the glow of zinc.", "x"]
SETTINGS = ReadoutSettings(layers=(-1, 1), pooling="mean", max_new_tokens=5, batch_size=2)
EXAMPLES = [Example(str(i), question, ("a",), str(i)) for i, question in enumerate(QUESTIONS)]


def test_batched_is_single_and_keeps_the_order(expert: Backbone) -> None:
    batched = read_all(expert, QUESTIONS, "Say.", SETTINGS)
    singles = [read(expert, [question], "Say.", SETTINGS) for question in QUESTIONS]
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
    assert write(expert, [prompt], 5)[0] == ids[len(prompt) :]


def test_states_are_those_of_the_written_tokens(expert: Backbone) -> None:
    prompts = [expert.prompts.ask_expert(question, "Say.") for question in QUESTIONS]
    written = [[7, 8, 9], [10], [], [11, 12], [13]]
    states = read_states(expert, prompts, written, (0, 1, -1))
    for prompt, ids, rows in zip(prompts, written, states, strict=True):
        hidden = expert.model.model(torch.tensor([prompt + ids]), output_hidden_states=True)
        expected = torch.stack([hidden.hidden_states[k][0] for k in (0, 1, -1)], 1)[-max(1, len(ids)) :]
        assert rows.shape == expected.shape
        assert torch.allclose(rows, expected, atol=1e-5)
        assert torch.equal(hidden.hidden_states[-1], hidden.last_hidden_state)
    assert torch.allclose(states[0][:, 0], expert.embed(written[0]))


def test_nothing_written_reads_the_prompts_last_token(expert: Backbone) -> None:
    readout = read(expert, QUESTIONS[:2], "Say.", SETTINGS.model_copy(update={"max_new_tokens": 0}))
    assert readout.empty == [True, True] and readout.texts == ["", ""]
    last = read_states(expert, [expert.prompts.ask_expert(QUESTIONS[1], "Say.")], [[]], (-1, 1))[0]
    assert torch.allclose(readout.slots[1], last, atol=1e-5)


def test_pooling() -> None:
    states = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(pool(states, "last"), states[2:])
    assert torch.equal(pool(states, "mean"), states[1:2])


@pytest.mark.parametrize(("layers", "words"), [((3,), "has 2 layers"), ((-4,), "from -3 to 2"), ((-1, -2), "reads one layer")])
def test_layers_that_cannot_be_read_are_refused(expert: Backbone, layers: tuple[int, ...], words: str) -> None:
    check_layers(expert, (-3,))
    with pytest.raises(SettingsError, match=words):
        check_layers(expert, layers)


def fake(questions: list[str]) -> Readout:
    slots = torch.tensor([[float(len(question))] for question in questions])[:, None, None]
    return Readout(slots, list(questions), [False] * len(questions))


def store(folder: Path, read=fake, key: str = "k") -> None:
    write_store(folder, key, {}, EXAMPLES, read, lambda n: None, part_size=2)


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

    def dies(questions: list[str]) -> Readout:
        if QUESTIONS[2] in questions:
            raise KeyboardInterrupt
        return fake(questions)

    def counts(questions: list[str]) -> Readout:
        asked.extend(questions)
        return fake(questions)

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
    write_store(tmp_path / "s", "k", {}, examples, fake, lambda n: None)
    assert read_store(tmp_path / "s", "k").ids == ["odd"]


def test_harmed_or_foreign_stores_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "s")
    with pytest.raises(ArtifactError, match="other inputs"):
        read_store(tmp_path / "s", "another")
    part = tmp_path / "s" / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut short"):
        read_store(tmp_path / "s", "k")

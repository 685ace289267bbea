"""What training changes of its rows: noise in slots, and other tokens in slots and answers together."""

import pytest
import torch

from gag.models.backbone import Backbone
from gag.project.hyperparameters import AlignSettings
from gag.project.settings import PromptSettings
from gag.projection.alignment import Row, Split
from gag.projection.perturbation import Perturbation, _kind

ASKED = {"What is tin?": "tin is red and cold", "What is zinc?": "zinc is gold and shiny"}


def split_of(base: Backbone, slots: int = 4) -> Split:
    """Rows whose slots hold the answers' last words, as the base's embeddings."""
    prompts, rows, filled = base.prompts, [], []
    for question, answer in ASKED.items():
        ids = prompts.answer(answer)
        rows.append(Row(prompts.with_knowledge(question, PromptSettings()), ids, [*ids[:2], *ids]))
        own = torch.zeros(slots, 1, base.width)
        chosen = ids[-slots - 1 : -1]
        own[: len(chosen), 0] = base.embeddings[chosen].detach().float()
        filled.append(own)
    return Split(rows, torch.stack(filled))


def settings(**given: float) -> AlignSettings:
    return AlignSettings(projector="residual", start="identity", **given)  # pyright: ignore[reportArgumentType]


def test_a_token_is_exchanged_in_slots_answer_and_text_alike(base: Backbone) -> None:
    train = split_of(base)
    drawn = Perturbation(base, train, settings(substitute=1.0)).draw([0, 1], 3)
    changed = 0
    for i, (row, slots) in drawn.items():
        before = train.rows[i]
        assert row.prompt == before.prompt and len(row.answer) == len(before.answer)
        swapped = dict(zip(before.answer, row.answer, strict=True))
        assert row.taught == [swapped.get(token, token) for token in before.taught]
        held = before.answer[-5:-1]
        assert torch.equal(slots[:, 0], base.embeddings[[swapped[token] for token in held]].float())
        for old, new in swapped.items():
            pieces = base.prompts.vocabulary(len(base.embeddings))
            changed += old != new
            assert _kind(pieces[old]) == _kind(pieces[new]) if old != new else True
            assert old == new or old in held, "a token that no slot holds stays"
        told = base.prompts.decode(row.answer).split()
        assert told[1] == "is", "what answers share, and what the question holds, stays"
        assert told[0] in ("tin", "zinc")
    assert changed >= 2


def test_a_step_draws_the_same_again_and_another_one_otherwise(base: Backbone) -> None:
    made = Perturbation(base, split_of(base), settings(substitute=1.0, noise=0.1))
    first, again, later = (made.draw([0], step)[0] for step in (1, 1, 2))
    assert first[0] == again[0] and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], later[1])


def test_without_noise_and_substitution_rows_are_as_they_are(base: Backbone) -> None:
    train = split_of(base)
    drawn = Perturbation(base, train, settings()).draw([1], 0)
    assert drawn[1][0] is train.rows[1] and torch.equal(drawn[1][1], train.slots[1])


def test_unused_slots_and_those_of_other_embeddings_stay(base: Backbone) -> None:
    train = split_of(base, slots=12)
    moved = Split(train.rows, train.slots + 0.5 * (train.slots != 0))
    for split in (moved, Split(train.rows, torch.zeros_like(train.slots))):
        row, slots = Perturbation(base, split, settings(substitute=1.0)).draw([0], 0)[0]
        assert row == split.rows[0] and torch.equal(slots, split.slots[0])


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [(" red", " cold", True), (" red", "red", False), ("Red", "Cold", True), ("Red", "red", False),
     ("7", "4", True), ("7", "42", False), (" tin", " 锡矿", False)],
)  # fmt: skip
def test_tokens_of_a_kind(first: str, second: str, alike: bool) -> None:
    assert _kind(first) is not None and (_kind(first) == _kind(second)) is alike


@pytest.mark.parametrize("sign", ["&", " -", "", " ", "\ufffd", "a1"])
def test_what_is_no_word_or_number_has_no_kind(sign: str) -> None:
    assert _kind(sign) is None

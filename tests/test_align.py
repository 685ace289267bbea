"""Alignment: the fast path is the plain full forward, and the base stays as it is."""

import copy
from pathlib import Path

import pytest
import torch

from gag.backbone import Backbone, weights_hash
from gag.config import AlignSettings
from gag.injection import inject
from gag.projector import Mlp
from gag.stages.align import AlignmentLoss, Row, Split, start_projector, train_projector

QUESTIONS = ["What is tin?", "Which metal is added to the bed of Kreluvax?", "Why?", "Name the glow of zinc."]
ANSWERS = ["gold", "pale violet", "two hundred small drops", "copper"]


@pytest.fixture
def rows(base: Backbone) -> list[Row]:
    prompts = base.prompts
    return [Row(prompts.with_knowledge(q, "Tell."), prompts.answer(a)) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


@pytest.fixture
def split(rows: list[Row]) -> Split:
    return Split(rows, torch.randn(len(rows), 1, 1, 24, generator=torch.Generator().manual_seed(0)))


def plain_loss(base: Backbone, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """One full forward per row, logits everywhere, mean over all answer tokens."""
    losses = []
    for row, vector in zip(rows, vectors, strict=True):
        prompt = inject(base, row.prompt, vector)
        embeds = torch.cat([prompt, base.embed(row.answer)])[None]
        logits = base.model(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("slots", [1, 3])
def test_fast_path_is_the_plain_forward_in_loss_and_gradient(base: Backbone, rows: list[Row], slots: int) -> None:
    torch.manual_seed(0)
    projector = Mlp(24, base.width)
    states = torch.randn(len(rows), slots, 1, 24)
    gradients = []
    losses = []
    for loss_of in (lambda v: plain_loss(base, v, rows), lambda v: AlignmentLoss(base, rows[0].prompt)(v, rows)):
        projector.zero_grad()
        loss = loss_of(0.1 * projector(states))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in projector.parameters() if p.grad is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(gradients[0]) == 4
    for plain, fast in zip(*gradients, strict=True):
        assert (fast - plain).norm() <= 1e-5 * plain.norm()


def test_training_lowers_the_loss_and_leaves_the_base_alone(base: Backbone, split: Split, tmp_path: Path) -> None:
    before = weights_hash(base.model)
    settings = AlignSettings(epochs=150, batch_size=2, learning_rate=1e-2, start="random")
    start = AlignmentLoss(base, split.rows[0].prompt).mean(start_projector(base, split, settings), split, 4)
    _, best = train_projector(base, split, split, settings, tmp_path)
    assert best < start - 1
    assert weights_hash(base.model) == before
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_training_repeats_bit_for_bit(base: Backbone, split: Split, tmp_path: Path) -> None:
    settings = AlignSettings(epochs=2, batch_size=2, noise=0.1)
    first, second = (train_projector(base, split, split, settings, tmp_path)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_epoch_is_kept(base: Backbone, split: Split, tmp_path: Path) -> None:
    wild = AlignSettings(epochs=3, batch_size=2, learning_rate=50.0)
    projector, best = train_projector(base, split, split, wild, tmp_path)
    loss_of = AlignmentLoss(base, split.rows[0].prompt)
    assert loss_of.mean(projector, split, 2) == pytest.approx(best)
    start = loss_of.mean(start_projector(base, split, wild), split, 2)
    assert best <= start


def test_mean_loss_does_not_depend_on_the_batch(base: Backbone, split: Split) -> None:
    projector = Mlp(24, base.width)
    loss_of = AlignmentLoss(base, split.rows[0].prompt)
    assert loss_of.mean(projector, split, 1) == pytest.approx(loss_of.mean(copy.deepcopy(projector), split, 4), rel=1e-5)

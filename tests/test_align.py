"""Alignment: the fast path is the plain forward, a killed run goes on, the base stays as it is."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gag.errors import DataError, MismatchError
from gag.models.backbone import Backbone, weights_hash
from gag.project.hyperparameters import AlignSettings
from gag.project.run import Run
from gag.project.settings import PromptSettings
from gag.projection.alignment import Reader, Row, Split
from gag.projection.injection import inject
from gag.projection.losses import diversity_loss, label_loss, semantic_loss
from gag.projection.projector import Mlp, Projector, make_projector
from gag.projection.start import new_projector, start_projector
from gag.projection.trainer import mean_loss, train_projector

QUESTIONS = ["What is tin?", "Which metal is added to the bed of Kreluvax?", "Why?", "Name the glow of zinc."]
ANSWERS = ["gold", "pale violet", "two hundred small drops", "copper"]
TEXTS = ["Tin is gold.", "", "Two hundred small drops, and again two hundred small drops.", "copper"]

TELL = PromptSettings(answer="Tell.")


@pytest.fixture
def rows(base: Backbone) -> list[Row]:
    prompts = base.prompts
    return [
        Row(
            prompts.with_knowledge(q, TELL),
            prompts.answer(a),
            prompts.with_text(q, TELL, t),
        )
        for q, a, t in zip(QUESTIONS, ANSWERS, TEXTS, strict=True)
    ]


@pytest.fixture
def split(rows: list[Row]) -> Split:
    return Split(rows, torch.randn(len(rows), 1, 1, 24, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def rich(rows: list[Row]) -> Split:
    """Three slots of two layers, and meanings."""
    generator = torch.Generator().manual_seed(0)
    return Split(
        rows,
        torch.randn(len(rows), 3, 2, 24, generator=generator),
        torch.randn(len(rows), 10, generator=generator),
    )


def started(base: Backbone, split: Split, settings: AlignSettings) -> Projector:
    return start_projector(new_projector(base, split, settings), base, split, settings)


def run(folder: Path, **inputs: str) -> Run:
    return Run(folder / "runs" / "metals" / "align.unfinished", inputs)


def plain_states(base: Backbone, vectors: torch.Tensor, row: Row) -> torch.Tensor:
    """One full forward -> every state, the answer's last."""
    embeds = torch.cat([inject(base, row.prompt, vectors), base.embed(row.answer)])[None]
    return base.model(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1][0]


def plain_loss(base: Backbone, vectors: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """One full forward per row, logits everywhere, mean over all answer tokens."""
    losses = []
    for row, vector in zip(rows, vectors, strict=True):
        logits = base.model.lm_head(plain_states(base, vector, row))[-len(row.answer) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("chunk", [2, 512])
def test_fast_path_is_the_plain_forward_in_loss_and_gradient(
    base: Backbone, rows: list[Row], slots: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gag.projection.losses.CHUNK", chunk)
    torch.manual_seed(0)
    projector = Mlp(24, base.width)
    states = torch.randn(len(rows), slots, 1, 24)

    def fast_loss(vectors: torch.Tensor) -> torch.Tensor:
        read = Reader(base, rows).read(vectors, rows)
        return label_loss(base, read.before, read.labels) / len(read.labels)

    gradients, losses = [], []
    for loss_of in (lambda v: plain_loss(base, v, rows), fast_loss):
        projector.zero_grad()
        loss = loss_of(0.1 * projector(states))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in projector.parameters() if p.grad is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(gradients[0]) == 4
    for plain, fast in zip(*gradients, strict=True):
        assert (fast - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize(("budget", "kept"), [(10**9, 4), (0, 0), (3_000, 2)])
def test_kept_questions_change_nothing(base: Backbone, rows: list[Row], budget: int, kept: int) -> None:
    vectors = torch.randn(len(rows), 2, base.width)
    plain, fast = Reader(base, rows), Reader(base, rows)
    assert fast.keep_questions(rows, budget, 90) == kept
    for chosen in ([0, 1, 2, 3], [2], [0, 2], [3, 1]):
        picked = [rows[i] for i in chosen]
        a, b = plain.read(vectors[chosen], picked), fast.read(vectors[chosen], picked)
        assert torch.allclose(a.before, b.before, atol=1e-5) and torch.equal(a.labels, b.labels)


def test_the_mean_state_is_of_the_answers_own_tokens(base: Backbone, rows: list[Row]) -> None:
    vectors = torch.randn(len(rows), 2, base.width)
    mean = Reader(base, rows).read(vectors, rows).mean
    for row, vector, got in zip(rows, vectors, mean, strict=True):
        expected = plain_states(base, vector, row)[-len(row.answer) : -1].mean(0)  # the end token is left out
        assert torch.allclose(got, expected, atol=1e-5)


def test_distillation_is_the_divergence_from_the_answers_given_text(base: Backbone, rows: list[Row]) -> None:
    reader = Reader(base, rows)
    read = reader.read(torch.randn(len(rows), 1, base.width), rows)
    taught = reader.read_text(rows)
    extra = label_loss(base, read.before, read.labels, taught, 0.5) - label_loss(
        base, read.before, read.labels
    )
    expected, place = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.taught + row.answer[:-1]])
        teacher = base.model(ids).logits[0, -len(row.answer) :].softmax(-1)
        student = base.model.lm_head(read.before[place : place + len(row.answer)]).softmax(-1)
        expected += 0.5 * (teacher * (teacher / student).log()).sum().item()
        place += len(row.answer)
    assert extra.item() == pytest.approx(expected, rel=1e-4)


def test_extra_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, 8)
    expected = 0.0
    for row in z:
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        expected += sum((row[i] @ row[j] / row[i].norm() / row[j].norm()) ** 2 for i, j in pairs) / len(pairs)
    assert diversity_loss(z).item() == pytest.approx(float(expected), rel=1e-5)
    assert diversity_loss(z[:, :1]).item() == 0
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    cosines = [(x @ y / x.norm() / y.norm()).item() for x, y in zip(a, b, strict=True)]
    assert semantic_loss(a, b).item() == pytest.approx(sum(1 - c for c in cosines), rel=1e-5)


def test_training_lowers_the_loss_and_leaves_the_base_alone(
    base: Backbone, split: Split, tmp_path: Path
) -> None:
    before = weights_hash(base.model)
    settings = AlignSettings(epochs=150, batch_size=2, learning_rate=1e-2, start="random")
    start = mean_loss(Reader(base, split.rows), base, started(base, split, settings), split, 4)
    _, best = train_projector(base, split, split, settings, run(tmp_path))
    assert best < start - 1
    assert weights_hash(base.model) == before
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_the_rich_preset_trains(base: Backbone, rich: Split, tmp_path: Path) -> None:
    settings = AlignSettings(
        projector="gated_residual", steps=60, batch_size=3, batch_tokens=50, learning_rate=1e-2, clip=1.0,
        semantic=0.1, diversity=0.1, distill=0.1, noise=0.1,
    )  # fmt: skip
    start = mean_loss(Reader(base, rich.rows), base, started(base, rich, settings), rich, 4)
    projector, best = train_projector(base, rich, rich, settings, run(tmp_path))
    assert best < start - 1
    assert not any("head" in name for name in projector.state_dict())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [1, 4, 5, 9])
def test_a_killed_run_goes_on_bit_for_bit(base: Backbone, rich: Split, tmp_path: Path, kill_at: int) -> None:
    settings = AlignSettings(
        projector="gated_residual",
        epochs=5,
        batch_size=2,
        learning_rate=1e-2,
        noise=0.2,
        semantic=0.1,
        checkpoint_minutes=0,
    )
    whole, best = train_projector(base, rich, rich, settings, run(tmp_path / "whole"))
    run_there = run(tmp_path / "killed")
    steps = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == kill_at:
            raise Killed
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Killed):
            train_projector(base, rich, rich, settings, run_there)
    (run_there.folder / "step-00000099").mkdir()  # half-written: stepped over
    again, best_again = train_projector(base, rich, rich, settings, run(tmp_path / "killed"))
    assert best_again == best
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    )
    logs = [
        (tmp_path / name / "runs" / "metals" / "align.unfinished" / "log.jsonl").read_text()
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_the_newest_two_checkpoints_are_kept(base: Backbone, split: Split, tmp_path: Path) -> None:
    settings = AlignSettings(epochs=5, batch_size=2, checkpoint_minutes=0, projector="mlp")
    there = run(tmp_path)
    projector, _ = train_projector(base, split, split, settings, there)
    folders = sorted(there.folder.glob("step-*"))
    assert [f.name for f in folders] == ["step-00000008", "step-00000009"]
    weights = sum(p.numel() * 4 for p in projector.parameters())
    size = sum(f.stat().st_size for f in folders[1].iterdir())
    assert size <= 3.2 * weights + 4096  # the JSON beside is all the more


def test_a_run_with_other_inputs_is_refused(base: Backbone, tmp_path: Path) -> None:
    run(tmp_path, learning_rate="0.1", rows="a")
    with pytest.raises(MismatchError, match=r"learning_rate: 0.1 there, 0.2 here"):
        run(tmp_path, learning_rate="0.2", rows="a")
    shutil.rmtree(tmp_path / "runs")
    run(tmp_path, learning_rate="0.2", rows="a")


def test_the_best_epoch_is_kept(base: Backbone, split: Split, tmp_path: Path) -> None:
    wild = AlignSettings(epochs=3, batch_size=2, learning_rate=50.0)
    projector, best = train_projector(base, split, split, wild, run(tmp_path))
    reader = Reader(base, split.rows)
    assert mean_loss(reader, base, projector, split, 2) == pytest.approx(best)
    start = mean_loss(reader, base, started(base, split, wild), split, 2)
    assert best <= start


def test_patience_stops_early(base: Backbone, split: Split, tmp_path: Path) -> None:
    other = Split(
        [replace(row, answer=split.rows[i - 1].answer) for i, row in enumerate(split.rows)], split.slots
    )
    settings = AlignSettings(epochs=200, batch_size=4, learning_rate=1e-2, patience=2, start="random")
    there = run(tmp_path)
    train_projector(base, split, other, settings, there)
    losses = [json.loads(line)["val_loss"] for line in there.log.read_text().splitlines()]
    assert len(losses) < 150
    assert min(losses[-2:]) > min(losses[:-2]) == losses[-3]


def test_a_loss_that_is_no_number_stops_the_run(base: Backbone, split: Split, tmp_path: Path) -> None:
    broken = Split(split.rows, torch.full_like(split.slots, torch.nan))
    with pytest.raises(DataError, match=r"loss is nan at step 1 .*lower align.learning_rate"):
        train_projector(base, broken, split, AlignSettings(start="random"), run(tmp_path))


def test_micro_batches_and_batch_size_do_not_matter(base: Backbone, rich: Split, tmp_path: Path) -> None:
    results = []
    for tokens in (1, 80, 8192):
        settings = AlignSettings(
            projector="gated_residual",
            epochs=2,
            batch_size=4,
            batch_tokens=tokens,
            semantic=0.1,
            diversity=0.1,
            noise=0.1,
        )
        results.append(
            train_projector(base, rich, rich, settings, run(tmp_path / str(tokens)))[0].state_dict()
        )
    for other in results[1:]:
        assert all(torch.allclose(results[0][n], other[n], rtol=1e-4, atol=1e-5) for n in other)
    projector = make_projector("mlp", (1, 1, 24), base.width)
    single = Split(rich.rows, rich.slots[:, :1, :1])
    reader = Reader(base, rich.rows)
    losses = [mean_loss(reader, base, copy.deepcopy(projector), single, tokens) for tokens in (1, 8192)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_validation_loss_that_is_no_number_stops_the_run(
    base: Backbone, split: Split, tmp_path: Path
) -> None:
    broken = Split(split.rows, torch.full_like(split.slots, torch.nan))
    with pytest.raises(DataError, match=r"validation loss is nan at step 0: no projector can be chosen"):
        train_projector(base, split, broken, AlignSettings(start="random"), run(tmp_path))


@pytest.mark.parametrize("rows", [7, 4096])
@pytest.mark.parametrize("kind", ["mlp", "gated_residual"])
def test_the_closed_form_start_is_the_same_in_pieces(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ridge regression on standardised features, however many rows are in float64 at a time."""
    torch.manual_seed(0)
    slots, targets = torch.randn(40, 1, 1, 6) * torch.arange(1, 7) + 3, torch.randn(40, 8)
    projector = make_projector(kind, (1, 1, 6), 8)
    monkeypatch.setattr("gag.projection.projector.ROWS", rows)
    projector.start_from_ridge(slots, targets)
    mixed = kind != "mlp"
    features = projector.norm_in(projector.mixed(slots))[:, 0].detach() if mixed else slots[:, 0, 0]  # pyright: ignore
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    wanted = targets.double()
    solution = torch.linalg.solve(x.T @ x + 0.1 * len(x) * torch.eye(6), x.T @ (wanted - wanted.mean(0)))
    expected = x @ solution + wanted.mean(0)
    if kind == "mlp":  # pairs of hidden units carry its strongest directions
        left, strength, right = torch.linalg.svd(solution, full_matrices=False)
        expected = x @ (left[:, :4] * strength[:4]) @ right[:4] + wanted.mean(0)
    assert torch.allclose(projector(slots)[:, 0].double(), expected, atol=1e-4)


def test_a_resumed_run_works_out_no_start_again(
    base: Backbone, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AlignSettings(epochs=4, batch_size=2, checkpoint_minutes=0)
    original, steps = torch.optim.AdamW.step, []

    def dies(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise Killed
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dies)
        with pytest.raises(Killed):
            train_projector(base, split, split, settings, run(tmp_path))
    monkeypatch.setattr(
        "gag.projection.trainer.start_projector", lambda *_: (_ for _ in ()).throw(AssertionError)
    )
    train_projector(base, split, split, settings, run(tmp_path))


def test_the_log_has_points_between_two_validations(base: Backbone, split: Split, tmp_path: Path) -> None:
    many = Split(split.rows * 10, split.slots.repeat(10, 1, 1, 1))
    there = run(tmp_path)
    train_projector(base, many, split, AlignSettings(epochs=2, batch_size=2), there)
    logged = [json.loads(line) for line in there.log.read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(41)) and sum(
        "val_loss" in row for row in logged
    ) == 3

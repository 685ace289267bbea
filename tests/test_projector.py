"""The projector: its closed-form start is the ridge regression, and saved is loaded."""

from pathlib import Path

import pytest
import torch

from gag.errors import ArtifactError, MismatchError
from gag.project.domain import PROJECTOR
from gag.project.hyperparameters import ReadoutSettings
from gag.project.tensors import save_tensors
from gag.projection.modules import load_projector
from gag.projection.projector import GatedResidual, Mlp, make_projector


def ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
    """The textbook formula on standardised features, with an unpenalised mean."""
    z = (x - x.mean(0)) / x.std(0, correction=0)
    weights = torch.linalg.inv(z.T @ z + penalty * len(x) * torch.eye(x.shape[1])) @ z.T @ (y - y.mean(0))
    return z @ weights + y.mean(0)


def test_closed_form_start_is_ridge_regression() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 6) * 3 + 1, torch.randn(50, 16)
    projector = Mlp(6, 16)  # rank 6 fits in 16 / 2 pairs of hidden units
    projector.start_from_ridge(x[:, None, None], y, penalty=0.1)
    assert torch.allclose(projector(x[:, None, None])[:, 0], ridge(x, y, 0.1), atol=1e-5)


def test_narrow_start_keeps_the_strongest_directions() -> None:
    torch.manual_seed(0)
    x, direction = torch.randn(80, 12), torch.randn(1, 8)
    y = x[:, :1] @ direction * 5 + 0.01 * torch.randn(80, 8)
    projector = Mlp(12, 8)  # only 4 pairs for rank 8
    projector.start_from_ridge(x[:, None, None], y, penalty=1e-6)
    assert torch.allclose(projector(x[:, None, None])[:, 0], y, atol=0.2)


def test_the_start_can_learn() -> None:
    torch.manual_seed(0)
    projector = Mlp(6, 16)
    projector.start_from_ridge(torch.randn(20, 1, 1, 6), torch.randn(20, 16))
    projector(torch.randn(3, 1, 1, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())


def test_shapes_and_layers() -> None:
    assert Mlp(6, 16)(torch.zeros(2, 3, 1, 6)).shape == (2, 3, 16)
    with pytest.raises(MismatchError, match="one layer"):
        Mlp(6, 16)(torch.zeros(2, 3, 2, 6))


def test_paper_size() -> None:
    assert sum(p.numel() for p in Mlp(2048, 4096).parameters()) == pytest.approx(25.17e6, rel=1e-3)


def test_saved_is_loaded(tmp_path: Path) -> None:
    projector = Mlp(6, 16)
    save_tensors(tmp_path / PROJECTOR, dict(projector.state_dict()))
    loaded = load_projector(tmp_path, "mlp", ReadoutSettings(), 6, 16)
    slots = torch.randn(2, 1, 1, 6)
    assert torch.equal(projector(slots), loaded(slots))
    with pytest.raises(MismatchError, match="shapes"):
        load_projector(tmp_path, "mlp", ReadoutSettings(), 7, 16)
    (tmp_path / PROJECTOR).write_bytes((tmp_path / PROJECTOR).read_bytes()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_projector(tmp_path, "mlp", ReadoutSettings(), 6, 16)


def plain_gated_residual(p: GatedResidual, slots: torch.Tensor) -> torch.Tensor:
    """The formula, question by question and slot by slot."""
    out = []
    for question in slots:
        for s, layers in enumerate(question):
            normal = [((m - m.mean()) / (m.var(correction=0) + 1e-6).sqrt()).clip(-10, 10) for m in layers]
            weights = p.mix[s].clip(-10, 10).exp() / p.mix[s].clip(-10, 10).exp().sum()
            f = sum(w * m for w, m in zip(weights, normal, strict=True))
            u = p.linear(p.norm_in(f))
            n = p.norm_out(u)
            out.append(u + 1 / (1 + (-p.gate(n)).exp()) * p.outer(torch.nn.functional.gelu(p.inner(n))))
    return torch.stack(out).view(*slots.shape[:2], -1)


def test_gated_residual_is_its_formula() -> None:
    torch.manual_seed(0)
    projector = GatedResidual(6, 16, slots=3, layers=2)
    with torch.no_grad():
        projector.mix.normal_(0, 8)  # some beyond the clamp
        projector.norm_in.bias.normal_()
    slots = torch.randn(4, 3, 2, 6) * 50
    slots[0, 0, 0] = torch.tensor([1e4, 0, 0, 0, 0, 0])
    assert torch.allclose(projector(slots), plain_gated_residual(projector, slots), atol=1e-5)
    with pytest.raises(MismatchError, match="slots and layers"):
        projector(slots[:, :2])


def test_gated_residual_starts_as_ridge_regression() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 1, 2, 6) * 3 + 1, torch.randn(50, 16)
    projector = GatedResidual(6, 16, slots=1, layers=2)
    projector.start_from_ridge(x, y, penalty=0.1)
    features = projector.norm_in(projector.mixed(x))[:, 0].detach()
    assert torch.allclose(projector(x)[:, 0], ridge(features, y, 0.1), atol=1e-5)
    projector(x).square().sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_paper_size_of_gated_residual() -> None:
    with torch.device("meta"):
        projector = make_projector("gated_residual", (4, 4, 2048), 4096)
    assert sum(p.numel() for p in projector.parameters()) == pytest.approx(58.75e6, rel=1e-3)
    with pytest.raises(MismatchError, match="only mlp, gated_residual and residual"):
        make_projector("cnn", (1, 1, 1), 1)

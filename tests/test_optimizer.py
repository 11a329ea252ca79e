"""optimizer.py: Muon, against SVD, torch.optim.Muon and torch.optim.Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from minimagen.optimizer import ITERATIONS, A, B, C, Muon, orthogonalised, split
from minimagen.presets import default_architecture
from minimagen.unet import Unet

SHAPES = [(16, 48), (48, 16), (64, 576), (1, 8), (8, 1), (1, 1)]
SQUARE = (32, 32)  # has small singular values, which three iterations do not bring near 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape).to(dtype))


def muon(matrices: list[nn.Parameter], others: list[nn.Parameter], fused: bool = False) -> Muon:
    return Muon(matrices, others, lr=0.01, fused=fused)


def give(weights: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.to(weight.dtype)


# --- the direction --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, SQUARE])
@pytest.mark.parametrize("iterations", [1, 2, ITERATIONS])
def test_direction_has_the_same_singular_vectors(shape: tuple[int, int], iterations: int) -> None:
    """The polynomial moves the singular values, and nothing else: by SVD, in float64."""
    g = torch.randn(3, *shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(iterations):
        s = A * s + B * s**3 + C * s**5
    torch.testing.assert_close(orthogonalised(g, iterations), u @ torch.diag_embed(s) @ vt)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_directions_count_nearly_the_same(shape: tuple[int, int]) -> None:
    """In float32: all singular values are near 1."""
    s = torch.linalg.svdvals(orthogonalised(torch.randn(5, *shape)))
    assert s.min() > 0.5 and s.max() < 1.3


def test_no_direction_is_reversed_or_too_long() -> None:
    """Not even in square matrices, whose smallest singular values stay small."""
    s = torch.linalg.svdvals(orthogonalised(torch.randn(20, *SQUARE)))
    assert s.max() < 1.3 and s.median() > 0.5


def test_length_of_the_gradient_does_not_matter() -> None:
    g = torch.randn(1, 8, 24)
    for factor in (1e-4, 1e4):
        torch.testing.assert_close(orthogonalised(factor * g), orthogonalised(g))
    assert (orthogonalised(0 * g) == 0).all()


# --- a step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, SQUARE])
def test_matrices_move_as_with_muon_of_torch(shape: tuple[int, int]) -> None:
    """torch.optim.Muon computes the direction in bfloat16, so it differs by some percent."""
    weight = parameter(*shape)
    other = copy.deepcopy(weight)
    ours = muon([weight], [])
    theirs = torch.optim.Muon(
        [other],
        lr=0.01,
        weight_decay=0.0,
        momentum=0.95,
        ns_steps=ITERATIONS,
        adjust_lr_fn="match_rms_adamw",
    )
    for _ in range(5):
        before, gradient = weight.detach().clone(), torch.randn(shape)
        other_before = other.detach().clone()
        give([weight, other], [gradient, gradient])
        ours.step()
        theirs.step()
        moved, due = weight - before, other - other_before
        assert (moved - due).norm() < 0.03 * due.norm() > 0


def test_matrices_of_equal_shape_are_told_apart() -> None:
    """They are orthogonalised in one batch; each is still moved by its own gradient."""
    shapes = [(8, 16), (16, 8), (8, 16), (4, 4), (8, 16)]
    weights = [parameter(*shape) for shape in shapes]
    alone = [copy.deepcopy(weight) for weight in weights]
    gradients = [torch.randn(shape) for shape in shapes]
    give(weights + alone, gradients + gradients)
    muon(weights, []).step()
    for weight in alone:
        muon([weight], []).step()
    for weight, due in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight, due)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_is_its_flattened_matrix(layout: torch.memory_format) -> None:
    kernel = parameter(8, 4, 3, 3)
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.data = kernel.data.to(memory_format=layout)
    optimizers = muon([kernel], []), muon([matrix], [])
    for _ in range(3):
        gradient = torch.randn(8, 4, 3, 3)
        kernel.grad = gradient.to(memory_format=layout)
        matrix.grad = gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)
    assert kernel.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("fused", [False, True])
def test_other_weights_are_moved_by_adam(fused: bool) -> None:
    """Bit for bit, whatever the matrices do."""
    matrix, others = parameter(8, 8), [parameter(8), parameter(3, 4, 2)]
    copies = copy.deepcopy(others)
    ours = muon([matrix], others, fused)
    theirs = torch.optim.Adam(copies, lr=0.01, betas=(0.9, 0.999), fused=fused)
    for _ in range(5):
        gradients = [torch.randn_like(weight) for weight in others]
        give([*others, *copies, matrix], [*gradients, *gradients, torch.randn(8, 8)])
        ours.step()
        theirs.step()
    for weight, due in zip(others, copies, strict=True):
        assert torch.equal(weight, due)


def test_gradients_of_matrices_are_gone_after_a_step() -> None:
    matrix, other = parameter(4, 4), parameter(4)
    give([matrix, other], [torch.randn(4, 4), torch.randn(4)])
    muon([matrix], [other]).step()
    assert matrix.grad is None and other.grad is not None


def test_weight_without_gradient_stays() -> None:
    matrix, other, idle, empty = parameter(4, 4), parameter(4), parameter(4, 4), parameter(4)
    before = idle.detach().clone(), empty.detach().clone()
    give([matrix, other], [torch.randn(4, 4), torch.randn(4)])
    optimizer = muon([idle, matrix], [empty, other])
    optimizer.step()
    assert torch.equal(idle, before[0]) and torch.equal(empty, before[1])
    assert set(optimizer.state_dict()["state"]) == {1, 3}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradient(dtype: torch.dtype) -> None:
    """A small one, whose squares are 0 in this precision: the step is that of float32."""
    gradient = (1e-4 * torch.randn(16, 32)).to(dtype)
    half, full = nn.Parameter(torch.zeros(16, 32, dtype=dtype)), nn.Parameter(torch.zeros(16, 32))
    give([half, full], [gradient, gradient])
    for weight in (half, full):
        muon([weight], []).step()
    assert half.dtype == dtype
    assert (half.float() - full).norm() < 0.02 * full.norm()


def test_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    weight, other = parameter(4, 8), parameter(4)
    before = weight.detach().clone(), other.detach().clone()
    optimizer = muon([weight], [other])

    def closure() -> Tensor:
        loss = (weight.sum(1) + other).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss == (before[0].sum(1) + before[1]).square().sum()
    assert not torch.equal(weight, before[0]) and not torch.equal(other, before[1])
    assert optimizer.step() is None  # no closure, no loss


def test_saved_state_goes_on_as_before() -> None:
    """Bit for bit: averages of gradients, moments and numbers of steps."""
    weights = [parameter(4, 8), parameter(8)]
    gradients = [[torch.randn(4, 8), torch.randn(8)] for _ in range(4)]
    optimizer = muon(weights[:1], weights[1:])
    for few in gradients[:2]:
        give(weights, few)
        optimizer.step()
    copies = copy.deepcopy(weights)
    again = muon(copies[:1], copies[1:])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for few in gradients[2:]:
        give(weights + copies, few + few)
        optimizer.step()
        again.step()
    assert all(map(torch.equal, weights, copies))


# --- which weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
def test_split_has_each_weight_once(stage: int) -> None:
    unet = Unet(default_architecture(testing=True).unets[stage])
    large, others = split(unet)
    ids = [id(weight) for weight in large + others]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(weight) for weight in unet.parameters()}
    assert all(weight.ndim in (2, 4) for weight in large)


@pytest.mark.parametrize("stage", [0, 1])
def test_matrices_are_all_layers_but_the_ends(stage: int) -> None:
    """Others are the first and last convolution, vectors, and the queries, which are no layer."""
    unet = Unet(default_architecture(testing=True).unets[stage])
    known = {id(weight) for weight in split(unet)[0]}
    names = {name for name, weight in unet.named_parameters() if id(weight) not in known}
    several = {name for name, weight in unet.named_parameters() if weight.ndim > 1}
    assert names & several == {"stem.weight", "out.weight", "pool.queries"}
    assert several - names and names >= {"stem.bias", "out.bias", "null_text"}

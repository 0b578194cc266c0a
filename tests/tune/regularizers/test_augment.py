"""Augmentation: each magnitude by itself against its formula, and derivatives with the noise held fixed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from metafast.tune.regularizers import Augment
from metafast.tune.regularizers._augment import BOUNDS
from metafast.tune.regularizers._bilinear import bilinear
from tests.helpers import assert_close

STARTS = {
    "shift": 0.15,
    "rotation": 20.0,
    "scale": 0.3,
    "shear": 0.2,
    "contrast": 0.4,
    "brightness": 0.3,
    "noise": 0.1,
    "cutout": 0.6,
}


def images(n=3, c=2, h=5, w=7):
    return torch.rand(n, c, h, w, dtype=torch.float64)


def seeded(augment, x, seed=3):
    torch.manual_seed(seed)
    return augment(x)


def uniform(n=3, seed=3):
    torch.manual_seed(seed)
    return 2 * torch.rand(n, dtype=torch.float64) - 1


def exact(**magnitudes):
    augment = Augment(**magnitudes).double()
    with torch.no_grad():
        for name, value in magnitudes.items():
            getattr(augment, name).fill_(value)  # .double() has kept the rounding of float32
    return augment


def test_bilinear_equals_grid_sample():
    x = images().requires_grad_()
    grid = (torch.rand(3, 4, 6, 2, dtype=torch.float64) * 2.6 - 1.3).requires_grad_()
    column, row = ((grid[..., i] + 1) * size / 2 - 0.5 for i, size in ((0, 7), (1, 5)))
    found, expected = bilinear(x, column, row), F.grid_sample(x, grid, align_corners=False)
    assert_close(found, expected, "values")
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), (x, grid))
    theirs = torch.autograd.grad((expected * weights).sum(), (x, grid))
    for a, b, name in zip(ours, theirs, ("images", "positions"), strict=True):
        assert_close(a, b, name)


def affine(x, matrix, offset):
    """By `F.affine_grid`, from a map of pixels around the middle."""
    h, w = x.shape[2:]
    size = torch.tensor([w / 2, h / 2], dtype=torch.float64)
    theta = torch.cat([matrix * size / size[:, None], (offset / size)[:, :, None]], 2)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


@pytest.mark.parametrize("name", ["shift", "rotation", "scale", "shear"])
def test_maps_equal_those_of_affine_grid(name):
    x, eps, m = images(), uniform(), STARTS[name]
    eye, none = torch.eye(2, dtype=torch.float64).expand(3, 2, 2), torch.zeros(3, 2, dtype=torch.float64)
    if name == "shift":
        torch.manual_seed(3)
        right, down = (2 * torch.rand(3, dtype=torch.float64) - 1 for _ in range(2))
        expected = affine(x, eye, torch.stack([m * right * 7, m * down * 5], 1))
    elif name == "rotation":
        angle = m * eps * math.pi / 180
        cos, sin = angle.cos(), angle.sin()
        expected = affine(x, torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1), none)
    elif name == "scale":
        expected = affine(x, eye / (m * eps).exp()[:, None, None], none)
    else:
        sheared = eye.clone()
        sheared[:, 0, 1] = m * eps
        expected = affine(x, sheared, none)
    assert_close(seeded(exact(**{name: m}), x), expected, name)


def test_contrast_brightness_and_noise_are_their_formulas():
    x, eps = images(), uniform().view(-1, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    assert_close(seeded(exact(contrast=0.4), x), mean + (x - mean) * (0.4 * eps).exp(), "contrast")
    assert_close(seeded(exact(brightness=0.3), x), x + 0.3 * eps, "brightness")
    found = seeded(exact(noise=0.1), x)
    torch.manual_seed(3)
    assert_close(found, x + 0.1 * torch.randn_like(x), "noise")


def test_cutout_removes_the_area_of_the_square():
    x = torch.ones(400, 1, 8, 8, dtype=torch.float64)
    for m, side in ((0.25, 2.0), (0.2, 1.6), (0.01, 0.08)):
        cut = 64 - seeded(exact(cutout=m), x).sum((1, 2, 3))
        assert cut.max().item() == pytest.approx(side**2)  # where the square is inside
        assert cut.min().item() >= 0 and (cut <= side**2 + 1e-9).all()
    out = seeded(exact(cutout=0.375), x)  # 3 pixels
    assert set(out.unique().tolist()) == {0.0, 1.0}


def test_small_magnitudes_change_little_and_evaluation_nothing():
    x = images(1, 1, 6, 6)
    out = Augment(**{name: low for name, (low, _) in BOUNDS.items()}).double()(x)
    assert (out - x).abs().max() < 0.05
    augment = exact(**STARTS)
    assert augment.eval()(x) is x


@pytest.mark.parametrize("name", STARTS)
def test_derivatives(name):
    augment, x = exact(**{name: STARTS[name]}), images(2, 1, 4, 5).requires_grad_()
    magnitude = getattr(augment, name)

    def fixed(x, m):
        return seeded(augment, x)

    assert torch.autograd.gradcheck(fixed, (x, magnitude), fast_mode=True)
    assert torch.autograd.gradgradcheck(fixed, (x, magnitude), fast_mode=True)


def test_all_together():
    augment, x = exact(**STARTS), images(2, 1, 4, 5).requires_grad_()
    assert [spec.name for spec in augment.tune()] == [f"augment.{name}" for name in STARTS]
    assert {spec.space for spec in augment.tune()} == {"log"}
    inputs = (x, *(getattr(augment, name) for name in STARTS))
    assert torch.autograd.gradcheck(lambda *_: seeded(augment, x), inputs, fast_mode=True)
    one, same, other = seeded(augment, x), seeded(augment, x), seeded(augment, x, 4)
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (1, 1, 1, 1), (2, 3, 1, 9)])
def test_odd_shapes(shape):
    out = exact(**STARTS)(torch.rand(shape))
    assert out.shape == shape and out.dtype == torch.float32 and out.isfinite().all()


def test_memory_formats_and_views():
    x = torch.rand(3, 2, 5, 7, dtype=torch.float64)
    expected = seeded(exact(**STARTS), x)
    assert_close(seeded(exact(**STARTS), x.contiguous(memory_format=torch.channels_last)), expected, "channels last")
    wide = torch.rand(3, 2, 5, 15, dtype=torch.float64)
    wide[..., 1::2] = x
    assert_close(seeded(exact(**STARTS), wide[..., 1::2]), expected, "view")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    augment, x = Augment(**STARTS).to(dtype), torch.rand(2, 1, 6, 6).to(dtype)
    out = seeded(augment, x)
    assert out.dtype == dtype and augment.shift.dtype == torch.float32
    assert_close(out, seeded(augment, x.float()).to(dtype), "pictures")

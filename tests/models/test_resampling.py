"""Pixel grids against PyTorch."""

import numpy as np
import pytest

from mperceiver_jax.models.resampling import pad_to_multiple, pixel_shuffle, pixel_unshuffle, resize_bilinear
from tests.support.parity_fixtures import nchw, nhwc

X = np.random.default_rng(0).standard_normal((2, 6, 4, 8), np.float32)


def test_shuffles_equal_pytorchs():
    functional = pytest.importorskip("torch").nn.functional
    torch = pytest.importorskip("torch")
    theirs = torch.from_numpy(nchw(X))
    np.testing.assert_array_equal(pixel_shuffle(X), nhwc(functional.pixel_shuffle(theirs, 2).numpy()))
    np.testing.assert_array_equal(pixel_unshuffle(X), nhwc(functional.pixel_unshuffle(theirs, 2).numpy()))
    np.testing.assert_array_equal(pixel_unshuffle(pixel_shuffle(X)), X)


@pytest.mark.parametrize("size", [(12, 9), (3, 2), (5, 7)])
def test_bilinear_equals_pytorchs(size):
    torch = pytest.importorskip("torch")
    wanted = torch.nn.functional.interpolate(torch.from_numpy(nchw(X)), size=size, mode="bilinear")
    np.testing.assert_allclose(resize_bilinear(X, *size), nhwc(wanted.numpy()), atol=1e-6)


def test_padding_reflects_at_the_bottom_and_right():
    np.testing.assert_array_equal(
        pad_to_multiple(X, 8), np.pad(X, ((0, 0), (0, 2), (0, 4), (0, 0)), mode="reflect")[:, :8, :8]
    )
    assert pad_to_multiple(X, 2) is X
    # Smaller than its padding: there and back again.
    np.testing.assert_array_equal(pad_to_multiple(X[:, :2], 8)[0, :, 0, 0], X[0, [0, 1] * 4, 0, 0])

import jax
import numpy as np
import pytest

from mperceiver_jax.evaluate.batch_metrics import batch_psnr
from mperceiver_jax.evaluate.metrics import psnr, ssim


def pair(noise=0.1, shape=(33, 40, 3), seed=0):
    rng = np.random.default_rng(seed)
    truth = np.clip(np.cumsum(rng.normal(0, 0.03, shape), 1) + 0.5, 0, 1).astype(np.float32)
    return np.clip(truth + rng.normal(0, noise, shape), 0, 1).astype(np.float32), truth


def test_psnr_in_closed_form():
    truth = np.full((8, 8, 3), 0.5, np.float32)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    one_value_off = truth.copy()
    one_value_off[0, 0, 0] += 0.25
    assert psnr(one_value_off, truth) == pytest.approx(10 * np.log10(8 * 8 * 3 / 0.0625), abs=1e-6)
    assert psnr(truth, truth) == float("inf")
    assert psnr(truth + 7, truth) == psnr(np.ones_like(truth), truth)  # clipped


def test_ssim_in_closed_form():
    image, _ = pair()
    assert ssim(image, image) == pytest.approx(1.0)
    a, b = 0.4, 0.6  # constant images: only the luminance term is left
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(np.full((9, 9, 3), a), np.full((9, 9, 3), b)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("noise, shape", [(0.02, (33, 40, 3)), (0.3, (7, 16, 3)), (0.1, (20, 20, 1))])
def test_equal_to_scikit_image(noise, shape):
    reference = pytest.importorskip("skimage.metrics")
    image, truth = pair(noise, shape)
    theirs = reference.structural_similarity(image, truth, channel_axis=-1, data_range=1)
    assert ssim(image, truth) == pytest.approx(theirs, abs=1e-5)
    assert psnr(image, truth) == pytest.approx(
        reference.peak_signal_noise_ratio(truth, image, data_range=1), abs=1e-5
    )


def test_batch_psnr_is_per_image_finite_and_jittable():
    pairs = [pair(noise) for noise in (0.02, 0.2)]
    images, truth = (np.stack(part) for part in zip(*pairs, strict=True))
    values = jax.jit(batch_psnr)(images, truth)
    np.testing.assert_allclose(values, [psnr(*p) for p in pairs], atol=1e-3)
    assert float(batch_psnr(truth, truth)[0]) == pytest.approx(100.0)


def test_what_cannot_be_compared_is_refused():
    image, truth = pair()
    with pytest.raises(ValueError, match="one shape"):
        psnr(image[1:], truth)
    with pytest.raises(ValueError, match="uint8"):
        psnr((image * 255).astype(np.uint8), truth)
    with pytest.raises(ValueError, match="7 pixels"):
        ssim(image[:6], truth[:6])

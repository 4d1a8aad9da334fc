from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.images import decode_image
from data_pipelines.sources.folders import bundled_photos
from mperceiver_jax.evaluate.metrics.full_reference import luma, ms_ssim, psnr, ssim
from mperceiver_jax.evaluate.metrics.full_reference_jax import batch_luma, batch_ms_ssim, batch_psnr, batch_ssim


def pair(noise=0.1, shape=(33, 40, 3), seed=0):
    rng = np.random.default_rng(seed)
    truth = np.clip(np.cumsum(rng.normal(0, 0.03, shape), 1) + 0.5, 0, 1).astype(np.float32)
    return np.clip(truth + rng.normal(0, noise, shape), 0, 1).astype(np.float32), truth


def photographs(height=176, width=192):
    """(noisy, clean) uint8, of bundled photographs; light and heavy noise."""
    rng = np.random.default_rng(0)
    names = ("evening_glow_0.jpg", "grace_hopper_0.jpg")
    for name, sigma in zip(names, (4, 60), strict=True):
        clean = decode_image(Path(bundled_photos("heldout")) / name)[:height, :width]
        yield np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 255).astype(np.uint8), clean


def as_unit(levels):
    return levels.astype(np.float32) / np.float32(255)


def test_psnr_in_closed_form():
    truth = np.full((8, 8, 3), 0.5, np.float32)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    one_value_off = truth.copy()
    one_value_off[0, 0, 0] += 0.25
    assert psnr(one_value_off, truth) == pytest.approx(10 * np.log10(8 * 8 * 3 / 0.0625), abs=1e-6)
    assert psnr(truth, truth) == float("inf")
    assert psnr(truth + 7, truth) == psnr(np.ones_like(truth), truth)  # clipped


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_in_closed_form(window):
    image, _ = pair()
    assert ssim(image, image, window) == pytest.approx(1.0)
    a, b = 0.4, 0.6  # constant images: only the luminance term is left
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    constant = lambda value: np.full((12, 13, 3), value)
    assert ssim(constant(a), constant(b), window) == pytest.approx(expected, abs=1e-9)


def test_gaussian_ssim_of_a_single_window():
    # 11x11: one window, so that mean and (co)variance are plain weighted sums.
    image, truth = pair(0.2, (11, 11, 1))
    x, y = image.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w = np.outer(weights, weights).ravel() / weights.sum() ** 2
    mx, my = w @ x, w @ y
    cov = lambda a, b: w @ ((a - w @ a) * (b - w @ b))
    expected = (2 * mx * my + 1e-4) * (2 * cov(x, y) + 9e-4)
    expected /= (mx**2 + my**2 + 1e-4) * (cov(x, x) + cov(y, y) + 9e-4)
    assert ssim(image, truth, "gaussian") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("noise, shape", [(0.02, (33, 40, 3)), (0.3, (7, 16, 3)), (0.1, (20, 20, 1))])
def test_equal_to_scikit_image(noise, shape):
    reference = pytest.importorskip("skimage.metrics")
    image, truth = pair(noise, shape)
    theirs = reference.structural_similarity(image, truth, channel_axis=-1, data_range=1)
    assert ssim(image, truth) == pytest.approx(theirs, abs=1e-5)
    assert psnr(image, truth) == pytest.approx(reference.peak_signal_noise_ratio(truth, image, data_range=1), abs=1e-5)


def test_equal_to_scikit_image_on_photographs_of_8_bits():
    reference = pytest.importorskip("skimage.metrics")
    colour = pytest.importorskip("skimage.color")
    for noisy, clean in photographs():
        image, truth = as_unit(noisy), as_unit(clean)
        assert psnr(image, truth) == pytest.approx(reference.peak_signal_noise_ratio(clean, noisy), abs=1e-5)
        theirs = reference.structural_similarity(clean, noisy, channel_axis=-1)
        assert ssim(image, truth) == pytest.approx(theirs, abs=1e-6)
        # MATLAB's way: luma, not rounded, on the scale of 8 bits.
        y, of_truth = (colour.rgb2ycbcr(levels)[..., 0] for levels in (noisy, clean))
        np.testing.assert_allclose(255 * luma(truth.astype(np.float64))[..., 0], of_truth, atol=1e-4)
        theirs = reference.structural_similarity(
            y, of_truth, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert ssim(luma(image), luma(truth), "gaussian") == pytest.approx(theirs, abs=1e-6)
        theirs = reference.peak_signal_noise_ratio(of_truth, y, data_range=255)
        assert psnr(luma(image), luma(truth)) == pytest.approx(theirs, abs=1e-5)


def test_ms_ssim():
    (light, clean), (heavy, other) = photographs()
    assert ms_ssim(as_unit(clean), as_unit(clean)) == pytest.approx(1)
    assert 0.9 < ms_ssim(as_unit(light), as_unit(clean)) < 1
    assert ms_ssim(as_unit(heavy), as_unit(other)) < ms_ssim(as_unit(light), as_unit(clean))
    # Constant images: contrast terms are 1, only the last scale's luminance is left.
    a, b = 0.4, 0.6
    expected = ((2 * a * b + 1e-4) / (a * a + b * b + 1e-4)) ** 0.1333
    assert ms_ssim(np.full((163, 161, 3), a), np.full((163, 161, 3), b)) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="161 pixels"):
        ms_ssim(as_unit(clean)[:160], as_unit(clean)[:160])


def test_ms_ssim_equals_the_value_of_an_independent_implementation():
    # pytorch-msssim 1.0.0, data_range=1, in float64 on this very pair.
    image, truth = (a.astype(np.float32) for a in wave())
    assert ms_ssim(image, truth) == pytest.approx(WAVE_MS_SSIM, abs=1e-5)


def wave():
    y, x = np.mgrid[:176, :192] / 40
    truth = 0.5 + 0.4 * np.stack([np.sin(x * y), np.cos(x + y), np.sin(3 * x) * np.cos(2 * y)], -1)
    return np.clip(truth + 0.15 * np.sin(17 * x + 11 * y)[..., None], 0, 1), truth


WAVE_MS_SSIM = 0.5737371


def test_batches_inside_jit_equal_single_images():
    pairs = [[as_unit(levels) for levels in both] for both in photographs()]
    images, truth = (np.stack(part) for part in zip(*pairs, strict=True))

    @jax.jit
    def all_of_them(x, y):
        return batch_psnr(x, y), batch_ssim(x, y), batch_ssim(x, y, "gaussian"), batch_ms_ssim(x, y), batch_luma(x)

    values = all_of_them(images, truth)
    for name, found, tolerance in (("psnr", values[0], 1e-4), ("ssim", values[1], 1e-5), ("ms_ssim", values[3], 1e-5)):
        single = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}[name]
        np.testing.assert_allclose(found, [single(*both) for both in pairs], atol=tolerance, err_msg=name)
    np.testing.assert_allclose(values[2], [ssim(*both, "gaussian") for both in pairs], atol=1e-5)
    np.testing.assert_allclose(values[4], luma(images), atol=1e-6)
    assert float(batch_psnr(truth, truth)[0]) == pytest.approx(100.0)


def test_what_cannot_be_compared_is_refused():
    image, truth = pair()
    with pytest.raises(ValueError, match="one shape"):
        psnr(image[1:], truth)
    with pytest.raises(ValueError, match="uint8"):
        psnr((image * 255).astype(np.uint8), truth)
    with pytest.raises(ValueError, match="no pixels"):
        psnr(image[:0], truth[:0])
    with pytest.raises(ValueError, match="7 pixels"):
        ssim(image[:6], truth[:6])
    with pytest.raises(ValueError, match="11 pixels"):
        batch_ssim(image[None, :10], truth[None, :10], "gaussian")
    with pytest.raises(ValueError, match="one shape"):
        batch_psnr(image[None, 1:], truth[None])

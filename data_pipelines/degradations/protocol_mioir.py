"""MiOIR's seven degradations, with the ranges it trains and tests in ('in') and those it only tests ('out').

Once for each image: to 8 bits, one task, to 8 bits again. Rain and haze are made on the 0..255 scale before
the first rounding. Depth for haze was estimated by a network that is not named; ours is a supplied map or a
synthetic one. The published images are cropped to multiples of 4 for rain, haze and x4; here other sizes are
padded by their last pixels for the computation, which is the same wherever the published code applies.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d, map_coordinates

from data_pipelines.degradations.diff_jpeg import diff_jpeg
from data_pipelines.degradations.fields import check_image
from data_pipelines.degradations.filters import filter_2d, gaussian_filter, gaussian_weights
from data_pipelines.degradations.haze import synthetic_depth
from data_pipelines.degradations.resample import resample

BLUR_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
BLUR_SIGMA = {"in": (1.0, 3.0), "out": (3.0, 5.0)}
NOISE_SIGMA = {"in": (15.0, 50.0), "out": (50.0, 70.0)}
JPEG_QUALITY = {"in": (30.0, 70.0), "out": (10.0, 30.0)}
RAIN_VALUE = {"in": (50, 100), "out": (100, 150)}
HAZE_BETA = {"in": (0.5, 2.5), "out": (2.5, 3.0)}
HAZE_LIGHT = (0.8, 1.0)
DARK_GAMMA = {"in": (1.0, 3.0), "out": (3.0, 4.0)}
RAIN_BLUR = (3, 5, 7, 9, 11)

_SHORT_GAUSSIANS = {
    3: np.array([1, 2, 1]) / 4,
    5: np.array([1, 4, 6, 4, 1]) / 16,
    7: np.array([2, 7, 14, 18, 14, 7, 2]) / 64,
}


def mioir_sr4(image: np.ndarray, rng: np.random.Generator, *, distribution: str = "in") -> np.ndarray:
    """Bicubic to a quarter (a = -0.75, no antialiasing) and bicubic back; one rounding at the end.

    What was published of the kernel and scale out of distribution does not suffice: ValueError for 'out'.
    """
    image = _eight_bit(_checked(image, distribution))
    if distribution != "in":
        raise ValueError("MiOIR does not state its out-of-distribution super-resolution; use its test files")
    padded, crop = _multiple_of_4(image)
    height, width = padded.shape[:2]
    small = resample(padded, height // 4, width // 4, "bicubic")
    return _eight_bit(resample(small, height, width, "bicubic")[crop])


def mioir_blur(
    image: np.ndarray, rng: np.random.Generator, *, distribution: str = "in", sigma: float | None = None
) -> np.ndarray:
    """Isotropic Gaussian of odd size 7..21 and sigma to two decimals; borders reflect-101."""
    image = _eight_bit(_checked(image, distribution))
    size = int(rng.choice(BLUR_SIZES))
    sigma = round(rng.uniform(*BLUR_SIGMA[distribution]), 2) if sigma is None else sigma
    return _eight_bit(gaussian_filter(image, size, sigma))


def mioir_noise(
    image: np.ndarray, rng: np.random.Generator, *, distribution: str = "in", sigma: int | None = None
) -> np.ndarray:
    """Gaussian noise in every channel, sigma a whole number of grey levels; clipped, then rounded."""
    image = _eight_bit(_checked(image, distribution))
    sigma = round(rng.uniform(*NOISE_SIGMA[distribution])) if sigma is None else sigma
    return _eight_bit(image + np.float32(sigma / 255) * rng.standard_normal(image.shape, np.float32))


def mioir_jpeg(
    image: np.ndarray, rng: np.random.Generator, *, distribution: str = "in", quality: int | None = None
) -> np.ndarray:
    """JPEG of a whole-numbered quality, by the differentiable code (see `diff_jpeg`)."""
    image = _eight_bit(_checked(image, distribution))
    quality = round(rng.uniform(*JPEG_QUALITY[distribution])) if quality is None else quality
    return _eight_bit(diff_jpeg(image, quality))


def mioir_rain(
    image: np.ndarray, rng: np.random.Generator, *, distribution: str = "in", value: int | None = None
) -> np.ndarray:
    """Streaks of filtered noise, the same in all channels, added to the image."""
    image = _checked(image, distribution)
    value = int(rng.integers(*RAIN_VALUE[distribution])) if value is None else value
    padded, crop = _multiple_of_4(image)
    rain = rain_layer(padded.shape[0], padded.shape[1], rng, value=value)[crop]
    rainy = np.clip(image * np.float32(255) + rain[..., None].astype(np.float32), 0, 255)
    return _eight_bit(rainy / np.float32(255))


def mioir_haze(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    distribution: str = "in",
    beta: float | None = None,
    light: float | None = None,
    depth: np.ndarray | None = None,
) -> np.ndarray:
    """I T + 255 A (1 - T), T = exp(-B d): A and B to two decimals, d divided by its maximum.

    Args:
      depth: (height, width) > 0, larger for farther; the published code estimates it at a quarter of the size
        and doubles it bilinearly twice. Default: `haze.synthetic_depth`.
    """
    image = _checked(image, distribution)
    light = round(rng.uniform(*HAZE_LIGHT), 2) if light is None else light
    beta = round(rng.uniform(*HAZE_BETA[distribution]), 2) if beta is None else beta
    depth = synthetic_depth(image.shape[0], image.shape[1], rng) if depth is None else depth
    if depth.shape != image.shape[:2]:
        raise ValueError(f"depth has shape {depth.shape}, the image needs {image.shape[:2]}")
    through = np.exp(np.float32(-beta) * (depth / max(float(depth.max()), 1e-6)).astype(np.float32))[..., None]
    return _eight_bit(image * through + np.float32(light) * (1 - through))


def mioir_dark(
    image: np.ndarray, rng: np.random.Generator, *, distribution: str = "in", gamma: float | None = None
) -> np.ndarray:
    """x ** gamma, gamma to two decimals."""
    image = _eight_bit(_checked(image, distribution))
    gamma = round(rng.uniform(*DARK_GAMMA[distribution]), 2) if gamma is None else gamma
    return _eight_bit(np.power(image, np.float32(gamma)))


def rain_layer(height: int, width: int, rng: np.random.Generator, *, value: int) -> np.ndarray:
    """The rain alone: uint8 (height, width). `value` is the amount, 50..150."""
    noise = rng.uniform(0, 256, (height, width)).astype(np.float32)
    noise = np.where(noise >= 256 - 0.01 * value, noise, np.float32(0))
    # The 3x3 cross 0.1, 8, 0.1. Few pixels are not zero: only their neighbourhoods change.
    padded = np.pad(noise, 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    noise = 8 * noise + np.float32(0.1) * around
    length = int(rng.integers(20, 41))
    angle = int(rng.integers(-45, 45))
    kernel = rain_kernel(length, angle, int(rng.choice(RAIN_BLUR)))
    rain = filter_2d(noise, kernel)
    low, high = float(rain.min()), float(rain.max())
    if high - low < 1e-6:  # a small image may get no drop
        return np.zeros((height, width), np.uint8)
    return ((rain - low) * np.float32(255 / (high - low))).astype(np.uint8)


def rain_kernel(length: int, angle: float, blur: int) -> np.ndarray:
    """A streak, float32 (length, length), not normalised: a diagonal turned by angle - 45 degrees and blurred."""
    turn = np.deg2rad(angle - 45)
    scale, centre = 1 - length / 100, length / 2
    a, b = scale * np.cos(turn), scale * np.sin(turn)
    forward = np.array([[a, b], [-b, a]])  # (x, y) of the diagonal to (x, y) of the streak, about the centre
    back = np.linalg.inv(forward)
    y, x = np.indices((length, length)) - centre
    source = np.einsum("ij,jrc->irc", back, np.stack([x, y])) + centre
    turned = map_coordinates(np.eye(length), source[::-1], order=1, mode="grid-constant", cval=0.0)
    # OpenCV, with which the published kernels were made, has short Gaussians in a table and computes the longer.
    weights = _SHORT_GAUSSIANS.get(blur)
    if weights is None:
        weights = gaussian_weights(blur, 0.3 * ((blur - 1) / 2 - 1) + 0.8)
    for axis in (0, 1):
        turned = correlate1d(turned, weights, axis=axis, mode="mirror")
    return turned.astype(np.float32)


def _checked(image: np.ndarray, distribution: str) -> np.ndarray:
    check_image(image)
    if distribution not in ("in", "out"):
        raise ValueError(f"distribution must be 'in' or 'out', not {distribution!r}")
    return image


def _eight_bit(image: np.ndarray) -> np.ndarray:
    """What an 8-bit file keeps: float32 multiples of 1/255 in [0, 1]."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)) / np.float32(255)


def _multiple_of_4(image: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    height, width = image.shape[:2]
    rows, columns = -height % 4, -width % 4
    padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else image
    return padded, np.s_[:height, :width]

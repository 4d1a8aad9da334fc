"""Rain: falling drops drawn out to streaks by the exposure."""

from __future__ import annotations

import numpy as np

from data_pipelines.degradations.blur import convolve_valid
from data_pipelines.degradations.fields import check_image, clip_unit, shorter_side, uniform

DENSITY = (0.4, 1.6)
LENGTH = (0.06, 0.2)
WIDTH = (0.004, 0.008)
# Pixels; thinner streaks would break up into dots.
THINNEST = 1.2
ANGLE = (-30.0, 30.0)
BRIGHTNESS = (0.35, 0.75)
LAYERS = 3


def streak_kernel(length: float, angle: float, width: float) -> np.ndarray:
    """One streak, float32 (odd, odd), peak 1: a line of `length` pixels with a Gaussian profile across.

    `width` is the full width at half maximum in pixels; `angle` in degrees from the vertical, positive leans
    right.
    """
    sigma = max(width, THINNEST) / 2.355
    reach = int(np.ceil(max(length, 0.0) / 2 + 2 * sigma))
    offset = np.arange(-reach, reach + 1, dtype=np.float32)
    slant = np.deg2rad(angle)
    along = offset[None, :] * np.sin(slant) - offset[:, None] * np.cos(slant)
    across = offset[None, :] * np.cos(slant) + offset[:, None] * np.sin(slant)
    ends = np.clip((max(length, 0.0) / 2 - np.abs(along)) / max(0.2 * length, 1.0) + 1, 0, 1)
    return (np.exp(-0.5 * (across / sigma) ** 2) * ends).astype(np.float32)


def add_rain(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    density: float | None = None,
    length: float | None = None,
    width: float | None = None,
    angle: float | None = None,
    brightness: float | None = None,
) -> np.ndarray:
    """Rain streaks in three layers of distance, screened over the image.

    A streak adds light of its own and hides a little of the background, in a linear relation: Garg and Nayar,
    "Vision and rain", 2007. Streaks as filtered noise are common practice for synthetic sets (Rain100L,
    Yang et al., "Deep joint rain detection and removal from a single image", 2017, and others); layers and
    ranges are ours.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      density: share of the image that streaks would cover without overlap, in units of 10 %, >= 0;
        default uniform in 0.4..1.6.
      length: of the nearest streaks as a fraction of the shorter side; default uniform in 0.06..0.2.
      width: their width likewise; default uniform in 0.004..0.008 (never thinner than 1.2 pixels).
      angle: degrees from the vertical, positive leans right; default uniform in -30..30.
      brightness: of the nearest streaks, 0..1; default uniform in 0.35..0.75.

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    density = uniform(rng, DENSITY) if density is None else density
    length = uniform(rng, LENGTH) if length is None else length
    width = uniform(rng, WIDTH) if width is None else width
    angle = uniform(rng, ANGLE) if angle is None else angle
    brightness = uniform(rng, BRIGHTNESS) if brightness is None else brightness
    height, wide, _ = image.shape
    side = shorter_side(image)
    clear = np.ones((height, wide), np.float32)
    for layer in range(LAYERS):
        nearness = 0.75**layer
        kernel = streak_kernel(nearness * length * side, angle + rng.normal(0, 2), nearness * width * side)
        shape = (height + kernel.shape[0] - 1, wide + kernel.shape[1] - 1)
        share = min(0.1 * density / LAYERS / float(kernel.sum()), 1.0)
        drops = np.zeros(shape, np.float32)
        count = rng.binomial(drops.size, share)
        drops.flat[rng.integers(drops.size, size=count)] = rng.uniform(0.4, 1.0, count)
        streaks = convolve_valid(drops, kernel)
        clear *= 1 - np.clip(np.float32(brightness * nearness) * streaks, 0, 0.9)
    return clip_unit(1 - (1 - image) * clear[..., None])

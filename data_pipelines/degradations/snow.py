"""Snow: flakes of many sizes at many distances, drawn out by their fall."""

from __future__ import annotations

import numpy as np

from data_pipelines.degradations.blur import convolve_valid, disk_kernel, straight_path, trajectory_kernel
from data_pipelines.degradations.fields import check_image, clip_unit, shorter_side, smooth_noise, uniform

DENSITY = (0.5, 1.6)
FLAKE = (0.012, 0.03)
MOTION = (0.5, 3.0)
VEIL = (0.0, 0.12)
# Radius relative to the largest flakes, share of the covered area, opacity: near flakes are few, large,
# and out of focus (thin), far ones many and small.
LAYERS = ((1.0, 0.12, 0.55), (0.55, 0.2, 0.75), (0.32, 0.3, 0.9), (0.18, 0.38, 0.9))


def flake_kernel(radius: float, fall: float, angle: float) -> np.ndarray:
    """A flake of `radius` pixels that moves `fall` pixels during the exposure: float32 (odd, odd), peak 1."""
    disk = disk_kernel(radius)
    path = trajectory_kernel(straight_path(fall, angle))
    reach = disk.shape[0] // 2
    kernel = convolve_valid(np.pad(path, 2 * reach), disk)
    return np.maximum(kernel, 0) / kernel.max()


def add_snow(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    density: float | None = None,
    flake: float | None = None,
    motion: float | None = None,
    veil: float | None = None,
) -> np.ndarray:
    """Falling snow, J (1 - z) + a z: opacity z and brightness a of flakes in four layers and a thin veil.

    The composition is that of Snow100K (Liu et al., "DesnowNet", 2018); the veil follows Chen et al.,
    "JSTASR", 2020. The flakes themselves, in layers of size, distance and motion, are our own.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      density: share of the image that flakes would cover without overlap, in units of 10 %, >= 0;
        default uniform in 0.5..1.6.
      flake: radius of the largest flakes as a fraction of the shorter side; default uniform in 0.012..0.03.
      motion: length of fall during the exposure in flake radii; default uniform in 0.5..3.
      veil: opacity of the veil, 0..1; default uniform in 0..0.12.

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    density = uniform(rng, DENSITY) if density is None else density
    flake = uniform(rng, FLAKE) if flake is None else flake
    motion = uniform(rng, MOTION) if motion is None else motion
    veil = uniform(rng, VEIL) if veil is None else veil
    height, width, _ = image.shape
    side = shorter_side(image)
    angle = uniform(rng, (-120, -60))
    clear = np.ones((height, width), np.float32)
    for size, share, opacity in LAYERS:
        radius = max(size * flake * side, 0.4)
        kernel = flake_kernel(radius, motion * radius, angle + rng.normal(0, 8))
        canvas = np.zeros((height + kernel.shape[0] - 1, width + kernel.shape[1] - 1), np.float32)
        expected = 0.1 * density * share / float(kernel.sum())
        count = rng.binomial(canvas.size, min(expected, 1.0))
        canvas.flat[rng.integers(canvas.size, size=count)] = rng.uniform(0.4, 1.0, count)
        clear *= 1 - opacity * np.clip(convolve_valid(canvas, kernel), 0, 1)
    brightness = np.float32(uniform(rng, (0.88, 1.0)))
    mist = np.float32(veil) * (0.5 + 0.5 * smooth_noise(height, width, 3, rng))
    clear *= 1 - mist
    return clip_unit(image * clear[..., None] + brightness * (1 - clear[..., None]))

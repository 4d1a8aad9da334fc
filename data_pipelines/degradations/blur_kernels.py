"""Random blur kernels of blind super-resolution: Gaussian, generalised Gaussian, plateau, and sinc (ringing).

Shapes and probabilities are those published with Real-ESRGAN (Wang et al., 2021); generalised and plateau
kernels come from Liu et al., "Estimating generalized Gaussian blur kernels", 2020.
"""

from __future__ import annotations

import numpy as np
from scipy.special import j1

from data_pipelines.degradations.fields import uniform

SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
# isotropic, anisotropic; the same generalised; the same with a plateau.
KINDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SINC = 0.1
GENERALISED_BETA = (0.5, 4.0)
PLATEAU_BETA = (1.0, 2.0)


def random_kernel(rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
    """A blur kernel, float32 (odd, odd), sum 1: a sinc in one of ten, else one of the Gaussian family."""
    size = int(rng.choice(SIZES))
    if rng.random() < SINC:
        least = np.pi / 3 if size < 13 else np.pi / 5
        return low_pass(uniform(rng, (least, np.pi)), size)
    family, anisotropic = divmod(int(rng.choice(6, p=KINDS)), 2)
    first = uniform(rng, sigma)
    second = uniform(rng, sigma) if anisotropic else first
    angle = uniform(rng, (-np.pi, np.pi)) if anisotropic else 0.0
    bounds = (None, GENERALISED_BETA, PLATEAU_BETA)[family]
    # Half of the exponents flatten the peak, half sharpen it, whatever the widths of the two ranges.
    beta = 1.0 if bounds is None else uniform(rng, (bounds[0], 1) if rng.random() < 0.5 else (1, bounds[1]))
    return gaussian_like(size, first, second, angle, beta, plateau=family == 2)


def sinc_kernel(rng: np.random.Generator) -> np.ndarray:
    """The last filter: a low pass of random size and cut-off in pi/3..pi."""
    size = int(rng.choice(SIZES))
    return low_pass(uniform(rng, (np.pi / 3, np.pi)), size)


def gaussian_like(
    size: int, first: float, second: float, angle: float, beta: float = 1.0, *, plateau: bool = False
) -> np.ndarray:
    """exp(-q^beta / 2), or 1 / (1 + q^beta) with a plateau; q is the squared Mahalanobis distance.

    Args:
      first, second: standard deviations along the axes turned by `angle` radians, pixels.
    """
    offset = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(offset, offset)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    distance = ((along / first) ** 2 + (across / second) ** 2) ** beta
    kernel = 1 / (1 + distance) if plateau else np.exp(-0.5 * distance)
    return (kernel / kernel.sum()).astype(np.float32)


def low_pass(cutoff: float, size: int) -> np.ndarray:
    """The ideal circular low pass cut off by a window of `size`: w J1(w r) / (2 pi r), sum 1; it rings."""
    offset = np.arange(size) - (size - 1) / 2
    radius = np.hypot(offset[:, None], offset[None, :])
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return (kernel / kernel.sum()).astype(np.float32)

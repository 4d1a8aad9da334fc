"""Filters that published degradations share: Gaussian, and any kernel over mirrored borders."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

from data_pipelines.degradations.blur import convolve_valid


def gaussian_weights(size: int, sigma: float) -> np.ndarray:
    """A sampled Gaussian of `size` taps (odd) that sums to one, float64."""
    offset = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (offset / sigma) ** 2)
    return weights / weights.sum()


def gaussian_filter(image: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Each channel of float32 (height, width, channels) under a size x size Gaussian; borders reflect-101."""
    weights = gaussian_weights(size, sigma).astype(np.float32)
    return correlate1d(correlate1d(image, weights, axis=0, mode="mirror"), weights, axis=1, mode="mirror")


def filter_2d(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation with a kernel of any size (its middle is size // 2), borders reflect-101.

    Args: image float32 (height, width[, channels]), each side longer than half the kernel; kernel (k, l).
    """
    border = [(length // 2, length - 1 - length // 2) for length in kernel.shape]
    padded = np.pad(image, border + [(0, 0)] * (image.ndim - 2), mode="reflect")
    return convolve_valid(padded, kernel[::-1, ::-1])

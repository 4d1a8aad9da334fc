"""Gaussian noise of the standard denoising benchmarks."""

from __future__ import annotations

import numpy as np

from data_pipelines.degradations.fields import check_image, clip_unit

SIGMAS = (15.0, 25.0, 50.0)


def add_gaussian_noise(image: np.ndarray, rng: np.random.Generator, *, sigma: float | None = None) -> np.ndarray:
    """White Gaussian noise, independent in every pixel and channel, clipped to [0, 1] and not re-quantised.

    Sigma 15, 25 and 50 is the convention of colour denoising since Zhang et al., "Beyond a Gaussian denoiser"
    (DnCNN), 2017.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      sigma: standard deviation in grey levels of 255; default one of 15, 25, 50.

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    if sigma is None:
        sigma = float(rng.choice(SIGMAS))
    return clip_unit(image + np.float32(sigma / 255) * rng.standard_normal(image.shape, dtype=np.float32))

"""Low light: too short an exposure, and the noise it leaves."""

from __future__ import annotations

import numpy as np

from data_pipelines.degradations.fields import check_image, clip_unit, uniform
from data_pipelines.degradations.light import photon_noise

EXPOSURE = (0.15, 0.6)
CURVE = (1.2, 2.2)
NOISE = (0.0, 0.02)


def darken(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    exposure: float | None = None,
    curve: float | None = None,
    noise: float | None = None,
) -> np.ndarray:
    """An underexposed image, exposure * image ** curve, with photon noise.

    Retinex view of an image as reflectance times illumination (Land and McCann, 1971), the scene of the
    LOL set (Wei et al., "Deep Retinex decomposition for low-light enhancement", 2018). Linear scaling with
    a power law is the simulation of Lv, Li and Lu, "Attention guided low-light image enhancement with a
    large scale low-light simulation dataset", 2021; signal-dependent noise after Foi et al., 2008.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      exposure: factor in 0..1; default uniform in 0.15..0.6.
      curve: exponent >= 1 that deepens the shadows; default uniform in 1.2..2.2.
      noise: standard deviation of the noise where the dark image is 1, >= 0, falling to a third of that in
        black; default uniform in 0..0.02.

    Returns a new float32 image in [0, 1]. Without noise it is a monotone function of the input.
    """
    check_image(image)
    exposure = uniform(rng, EXPOSURE) if exposure is None else exposure
    curve = uniform(rng, CURVE) if curve is None else curve
    noise = uniform(rng, NOISE) if noise is None else noise
    dark = np.float32(exposure) * np.power(image, np.float32(curve))
    variance = noise * noise
    return clip_unit(dark + photon_noise(dark, 0.9 * variance, 0.1 * variance, rng))

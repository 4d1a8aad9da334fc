"""Composite degradations in the style of CDD-11 (OneRestore): low light, then rain and snow, then haze.

The order is physical: little light falls on the scene, drops and flakes are in the air in front of it, and
haze veils them all. The published set is rendered once, with masks and depth maps that are not ours to give;
benchmark on its files. What follows has its formation model, ranges as commonly quoted of it (not confirmed), and
our own streaks, flakes, depth and strength of noise:

  low light   J L ** (g - 1) with g in 2..3, L the illumination (the largest channel, smoothed), and noise
  rain, snow  `rain.add_rain`, `snow.add_snow`
  haze        I t + A (1 - t), t = exp(-b d), b in 1..2, A in 0.6..0.9
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

from data_pipelines.degradations.fields import check_image, clip_unit, shorter_side, uniform
from data_pipelines.degradations.haze import add_haze
from data_pipelines.degradations.rain import add_rain
from data_pipelines.degradations.snow import add_snow

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

KINDS = (
    "low",
    "haze",
    "rain",
    "snow",
    "low_haze",
    "low_rain",
    "low_snow",
    "haze_rain",
    "haze_snow",
    "low_haze_rain",
    "low_haze_snow",
)
DARKENING = (2.0, 3.0)
NOISE = (0.03, 0.08)
BETA = (1.0, 2.0)
LIGHT = (0.6, 0.9)


def cdd11(image: np.ndarray, rng: np.random.Generator, *, kind: str | None = None) -> np.ndarray:
    """One of the eleven kinds of degradation.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      kind: one of `KINDS`; default any, each as likely.

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    kind = KINDS[rng.integers(len(KINDS))] if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    parts = kind.split("_")
    # Each part has its own stream: low_haze_rain is the rain of `rain` under the haze of `haze`.
    streams = dict(zip(("low", "rain", "snow", "haze"), rng.spawn(4), strict=True))
    steps: dict[str, Degradation] = {"low": low_light, "rain": add_rain, "snow": add_snow, "haze": _haze}
    for name, step in steps.items():
        if name in parts:
            image = step(image, streams[name])
    return image


def low_light(
    image: np.ndarray, rng: np.random.Generator, *, gamma: float | None = None, noise: float | None = None
) -> np.ndarray:
    """The image under less light: reflectance J / L stays, illumination L becomes L ** gamma, noise is added.

    `noise` is the deviation of the noise relative to the darkened image's mean.
    """
    check_image(image)
    gamma = uniform(rng, DARKENING) if gamma is None else gamma
    noise = uniform(rng, NOISE) if noise is None else noise
    side = max(1, round(shorter_side(image) / 32))
    brightest = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    light = np.maximum(uniform_filter(brightest, side, mode="reflect"), np.float32(1e-3))
    dark = image * np.power(light, np.float32(gamma - 1))[..., None]
    deviation = np.float32(noise * float(dark.mean()))
    return clip_unit(dark + deviation * rng.standard_normal(image.shape, np.float32))


def _haze(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return add_haze(image, rng, density=uniform(rng, BETA), airlight=uniform(rng, LIGHT))

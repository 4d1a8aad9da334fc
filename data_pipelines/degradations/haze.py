"""Haze: light scattered by the air between the scene and the camera."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.degradations.fields import check_image, clip_unit, smooth_noise, uniform

DENSITY = (0.5, 2.0)
AIRLIGHT = (0.75, 1.0)


def synthetic_depth(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A plausible depth map for a photograph that has none: float32 (height, width) in [0, 1], 1 the
    farthest.

    A ground plane seen in perspective (depth grows as 1 / distance below the horizon), everything above the
    horizon far, and smooth hills of random relief that make near things rise into the sky. Our own design.
    """
    horizon = uniform(rng, (0.15, 0.55))
    nearest = uniform(rng, (0.15, 0.35))
    tilt = uniform(rng, (-0.15, 0.15))
    relief = uniform(rng, (0.25, 0.6))
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height
    columns = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    below = np.maximum(rows[:, None] + np.float32(tilt) * columns[None, :] - np.float32(horizon), 0)
    plane = nearest / (nearest + below)
    bumps = 0.7 * smooth_noise(height, width, 3, rng) + 0.3 * smooth_noise(height, width, 8, rng)
    return clip_unit(plane * (1 - np.float32(relief) * bumps))


def add_haze(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    density: float | None = None,
    airlight: float | Sequence[float] | None = None,
    depth: np.ndarray | None = None,
) -> np.ndarray:
    """Hazy image I T + A (1 - T) with T = exp(-density * depth).

    The atmospheric scattering model: Koschmieder, "Theorie der horizontalen Sichtweite", 1924; the form
    and the practice of drawing A and beta at random are those of RESIDE (Li et al., "Benchmarking
    single-image dehazing and beyond", 2019). The published sets use measured or estimated depth; here it
    is synthetic unless supplied.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      density: scattering coefficient beta per unit of depth, >= 0; default uniform in 0.5..2.
      airlight: A in [0, 1], one number or one for each channel; default uniform in 0.75..1, with a faint
        tint.
      depth: (height, width), >= 0, in any unit that suits `density`; default `synthetic_depth`.

    Returns a new float32 image in [0, 1]. Raises ValueError for a depth of another size.
    """
    check_image(image)
    height, width, _ = image.shape
    if density is None:
        density = uniform(rng, DENSITY)
    if airlight is None:
        airlight = (uniform(rng, AIRLIGHT) + rng.uniform(-0.02, 0.02, 3)).tolist()
    if depth is None:
        depth = synthetic_depth(height, width, rng)
    if depth.shape != (height, width):
        raise ValueError(f"depth has shape {depth.shape}, the image needs {(height, width)}")
    transmission = np.exp(np.float32(-density) * depth.astype(np.float32, copy=False))[..., None]
    light = np.clip(np.asarray(airlight, np.float32), 0, 1)
    return clip_unit(image * transmission + light * (1 - transmission))

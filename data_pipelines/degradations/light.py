"""Between display values and linear light, and the noise of counting photons.

Optics and sensors work on light; images are stored gamma encoded. Blur and sensor noise are applied to the
light and encoded back, as in a camera.
"""

from __future__ import annotations

import numpy as np

GAMMA = 2.2


def to_light(image: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Display values in [0, 1] -> linear light in [0, 1] (a pure power law, not the piecewise sRGB curve)."""
    return image if gamma == 1.0 else np.power(image, np.float32(gamma))


def to_display(light: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Linear light -> display values in [0, 1]; light outside [0, 1] is clipped, as a sensor saturates."""
    clipped = np.clip(light, 0.0, 1.0)
    return clipped if gamma == 1.0 else np.power(clipped, np.float32(1.0 / gamma))


def photon_noise(light: np.ndarray, shot: float, read: float, rng: np.random.Generator) -> np.ndarray:
    """Zero-mean noise, float32 of the shape of `light`, of variance `shot * light + read`.

    The Poisson-Gaussian model of raw data in its heteroskedastic normal form: Foi, Trimeche, Katkovnik and
    Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data", 2008.
    """
    deviation = np.sqrt(np.float32(shot) * np.maximum(light, 0) + np.float32(read))
    return deviation * rng.standard_normal(light.shape, dtype=np.float32)

"""Draws of the nine degradations over the whole range of real images: from imperceptible to strong.

The defaults of the degradations are those of test sets: clearly visible, with lengths in fractions of the
shorter side. A model that restores other people's images at their native size meets streaks and kernels of any
number of pixels, haze as thin as a clear day's and noise of a single grey level. Here every length is drawn in
pixels and every strength down to almost nothing, most of them on a logarithmic scale, so that mild
degradations are as frequent as strong ones. Ranges are our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.degradations.blur import defocus_blur, motion_blur
from data_pipelines.degradations.fields import clip_unit, log_uniform, shorter_side, uniform
from data_pipelines.degradations.haze import add_haze, synthetic_depth
from data_pipelines.degradations.low_light import darken
from data_pipelines.degradations.noise import SIGMAS, add_gaussian_noise
from data_pipelines.degradations.rain import add_rain
from data_pipelines.degradations.raindrop import add_raindrops
from data_pipelines.degradations.sensor_noise import add_sensor_noise, jpeg
from data_pipelines.degradations.snow import add_snow

# Pixels. The upper ends are those of the standard severities in an image whose shorter side has 512 pixels.
MOTION_LENGTH = (1.5, 52.0)
DEFOCUS_RADIUS = (0.5, 13.5)
RAIN_LENGTH = (6.0, 103.0)
RAIN_WIDTH = (1.0, 4.2)
FLAKE = (1.0, 15.5)
DROP_RADIUS = (2.0, 31.0)


def wide_haze(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Haze of density 0.1 to 2.5. The depth varies over the image or, as in a cut from a large image, hardly."""
    height, width, _ = image.shape
    depth = synthetic_depth(height, width, rng)
    if rng.random() < 0.5:
        relief = np.float32(rng.random())
        depth = relief * depth + (1 - relief) * np.float32(rng.random())
    return add_haze(image, rng, density=log_uniform(rng, (0.1, 2.5)), airlight=None, depth=depth)


def wide_snow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Snow of a fifteenth to all of the strongest default density; the largest flakes 1 to 15.5 pixels in radius."""
    flake = log_uniform(rng, FLAKE) / shorter_side(image)
    return add_snow(image, rng, density=log_uniform(rng, (0.1, 2.0)), flake=flake, veil=uniform(rng, (0.0, 0.15)))


def wide_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of 1 to 60 grey levels; in one draw of three one of the usual 15, 25 and 50."""
    sigma = float(rng.choice(SIGMAS)) if rng.random() < 1 / 3 else log_uniform(rng, (1.0, 60.0))
    return add_gaussian_noise(image, rng, sigma=sigma)


def wide_rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rain of every density, in streaks of 6 to 103 pixels that are 1 to 4.2 pixels wide."""
    side = shorter_side(image)
    return add_rain(
        image,
        rng,
        density=log_uniform(rng, (0.1, 2.0)),
        length=log_uniform(rng, RAIN_LENGTH) / side,
        width=uniform(rng, RAIN_WIDTH) / side,
        angle=uniform(rng, (-45.0, 45.0)),
        brightness=uniform(rng, (0.15, 0.85)),
    )


def wide_motion_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Camera shake over 1.5 to 52 pixels."""
    return motion_blur(image, rng, length=log_uniform(rng, MOTION_LENGTH) / shorter_side(image))


def wide_defocus_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A circle of confusion of 0.5 to 13.5 pixels in radius."""
    return defocus_blur(image, rng, radius=log_uniform(rng, DEFOCUS_RADIUS) / shorter_side(image))


def wide_sensor_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Camera noise of ISO 400 to 25600, stored as JPEG of quality 70 to 98."""
    return add_sensor_noise(image, rng, iso=log_uniform(rng, (400.0, 25600.0)), quality=int(rng.integers(70, 99)))


def wide_raindrops(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drops on a fiftieth to a quarter of the glass, the largest 2 to 31 pixels in radius."""
    radius = log_uniform(rng, DROP_RADIUS) / shorter_side(image)
    return add_raindrops(image, rng, coverage=log_uniform(rng, (0.02, 0.25)), radius=radius)


def wide_darken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Underexposure to a tenth, with no more than a slight curve to a deep one, and noise up to three percent."""
    return darken(
        image,
        rng,
        exposure=uniform(rng, (0.1, 0.85)),
        curve=uniform(rng, (1.0, 2.4)),
        noise=uniform(rng, (0.0, 0.03)),
    )


def nearly_clean(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image that needs no restoration: as it is, with noise of at most 1.2 grey levels, or as a fine JPEG."""
    kind = rng.integers(3)
    if kind == 0:
        return image.copy()
    if kind == 1:
        sigma = uniform(rng, (0.1, 1.2))
        return clip_unit(image + np.float32(sigma / 255) * rng.standard_normal(image.shape, dtype=np.float32))
    return jpeg(image, int(rng.integers(92, 100)))


WIDE: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "dehaze": wide_haze,
    "desnow": wide_snow,
    "denoise": wide_noise,
    "derain": wide_rain,
    "deblur_motion": wide_motion_blur,
    "deblur_defocus": wide_defocus_blur,
    "denoise_real": wide_sensor_noise,
    "deraindrop": wide_raindrops,
    "lowlight": wide_darken,
}
"""The draw for each of MPerceiver's tasks (`tasks.TASKS`)."""

"""The noise of a camera: photons and electronics on the sensor, the camera's own processing, JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import correlate1d

from data_pipelines.degradations.fields import check_image, clip_unit, log_uniform, uniform
from data_pipelines.degradations.light import photon_noise, to_display, to_light

ISO = (1600.0, 20000.0)
RED_GAIN = (1.9, 2.4)
BLUE_GAIN = (1.5, 1.9)
QUALITY = (75, 98)


def mosaic_noise(noise: np.ndarray) -> np.ndarray:
    """Noise as it looks after bilinear demosaicing of an RGGB sensor: (height, width, 3) -> the same.

    Only the values on each channel's own sites are kept, and interpolated to the others; single grains become
    blotches of two or three pixels, which is how real noise differs most from white noise. An image of a
    single row or column has no mosaic and keeps its noise.
    """
    if min(noise.shape[:2]) < 2:
        return noise
    sites = np.zeros_like(noise)
    sites[0::2, 0::2, 0] = noise[0::2, 0::2, 0]
    sites[0::2, 1::2, 1] = noise[0::2, 1::2, 1]
    sites[1::2, 0::2, 1] = noise[1::2, 0::2, 1]
    sites[1::2, 1::2, 2] = noise[1::2, 1::2, 2]
    tent = np.array([0.5, 1.0, 0.5], np.float32)
    spread = correlate1d(correlate1d(sites, tent, axis=0, mode="mirror"), tent, axis=1, mode="mirror")
    # Twice as many sites are green: between them the four neighbours are averaged, on them the value stands.
    spread[..., 1] *= 0.5
    green = np.zeros(noise.shape[:2], bool)
    green[0::2, 1::2] = green[1::2, 0::2] = True
    spread[..., 1] = np.where(green, sites[..., 1], spread[..., 1])
    return spread


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after a round through 8 bits and JPEG at `quality` (1 to 100): float32 in [0, 1]."""
    stored = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(stored, "JPEG", quality=int(quality))
    return np.asarray(Image.open(stored), np.float32) / np.float32(255)


def add_sensor_noise(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    iso: float | None = None,
    red_gain: float | None = None,
    blue_gain: float | None = None,
    quality: int | None = None,
) -> np.ndarray:
    """Camera noise: back to raw light, Poisson-Gaussian noise, demosaicing, forward again, JPEG.

    Noise model: Foi et al., 2008. Going back through gamma and white balance, the gains, and the relation
    of read to shot noise: Brooks et al., "Unprocessing images for learned raw denoising", 2019. A pure
    gamma takes the place of their tone curve and colour matrix.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      iso: sensitivity; shot noise has the variance 1e-6 iso x light; default log-uniform in 1600..20000.
      red_gain, blue_gain: white balance gains relative to green; defaults uniform in 1.9..2.4 and 1.5..1.9.
      quality: JPEG quality, 1 to 100; default an integer in 75..98.

    Returns a new float32 image in [0, 1], on the 8-bit grid.
    """
    check_image(image)
    iso = log_uniform(rng, ISO) if iso is None else iso
    red_gain = uniform(rng, RED_GAIN) if red_gain is None else red_gain
    blue_gain = uniform(rng, BLUE_GAIN) if blue_gain is None else blue_gain
    quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1)) if quality is None else quality
    shot = 1e-6 * iso
    read = float(np.exp(2.18 * np.log(max(shot, 1e-12)) + 1.20 + rng.normal(0, 0.26)))
    gains = np.array([red_gain, 1.0, blue_gain], np.float32)
    light = to_light(image)
    noise = mosaic_noise(photon_noise(light / gains, shot, read, rng))
    return clip_unit(jpeg(to_display(light + noise * gains), quality))

"""Blind degradation in two stages, with the published settings of Real-ESRGAN (Wang et al., 2021, x4 net).

Each stage: blur, resize, noise, JPEG; at the end a sinc filter and the last JPEG in either order. The image
is taken to 8 bits at the end. The clean image is not sharpened here (the GAN variant of the recipe does so).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.degradations.blur_kernels import random_kernel, sinc_kernel
from data_pipelines.degradations.diff_jpeg import diff_jpeg
from data_pipelines.degradations.fields import check_image, clip_unit, uniform
from data_pipelines.degradations.filters import filter_2d
from data_pipelines.degradations.resample import resample

_MODES = ("area", "bilinear", "bicubic")
_GREY = np.array([0.2989, 0.587, 0.114], np.float32)
JPEG_QUALITY = (30.0, 95.0)
FINAL_SINC = 0.8


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      blur: probability of a blur at all.
      sigma: of the blur's Gaussian, pixels.
      resize: probabilities of enlarging, reducing and leaving.
      scales: least and largest factor.
      gaussian: standard deviation of Gaussian noise, grey levels.
      poisson: scale of Poisson noise.
    """

    blur: float
    sigma: tuple[float, float]
    resize: tuple[float, float, float]
    scales: tuple[float, float]
    gaussian: tuple[float, float]
    poisson: tuple[float, float]


STAGES = (
    Stage(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0)),
    Stage(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5)),
)


def real_esrgan(image: np.ndarray, rng: np.random.Generator, *, scale: int = 4, same_size: bool = True) -> np.ndarray:
    """A low-quality version of an image.

    Args:
      image: float32 (height, width, 3) in [0, 1], at least 64 pixels a side.
      scale: how much smaller the result is.
      same_size: enlarge it again (bicubic), for models whose input and output have one size.

    Returns a new float32 image in [0, 1]: (height, width, 3), or (height // scale, width // scale, 3) in
    multiples of 1/255.
    """
    check_image(image)
    height, width = image.shape[:2]
    if min(height, width) < 64:
        raise ValueError(f"the kernels of Real-ESRGAN need 64 pixels a side, not {height}x{width}")
    first, second = STAGES
    low = _one_stage(image, first, (height, width), rng)
    low = diff_jpeg(clip_unit(low), uniform(rng, JPEG_QUALITY))
    low = _one_stage(low, second, (height // scale, width // scale), rng)
    size = (height // scale, width // scale)
    sinc = sinc_kernel(rng) if rng.random() < FINAL_SINC else None
    mode = _MODES[rng.integers(3)]
    quality = uniform(rng, JPEG_QUALITY)
    if rng.random() < 0.5:
        low = diff_jpeg(clip_unit(_filtered(resample(low, *size, mode), sinc)), quality)
    else:
        low = _filtered(resample(diff_jpeg(clip_unit(low), quality), *size, mode), sinc)
    low = np.rint(clip_unit(low) * np.float32(255)) / np.float32(255)
    return clip_unit(resample(low, height, width, "bicubic")) if same_size else low


def _one_stage(image: np.ndarray, stage: Stage, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Blur, resize and noise. `size` is what a factor of one means: the image's, or that over the scale."""
    if rng.random() < stage.blur:
        image = _filtered(image, random_kernel(rng, stage.sigma))
    kind = rng.choice(3, p=stage.resize)
    factor = (uniform(rng, (1, stage.scales[1])), uniform(rng, (stage.scales[0], 1)), 1.0)[kind]
    target = max(1, int(size[0] * factor)), max(1, int(size[1] * factor))
    # The first resize is by a factor, the second to a size: that decides where the samples are taken.
    scale = (factor, factor) if size == image.shape[:2] else None
    image = resample(image, *target, _MODES[rng.integers(3)], scale)
    grey = rng.random() < 0.4
    if rng.random() < 0.5:
        shape = (*image.shape[:2], 1 if grey else 3)
        sigma = np.float32(uniform(rng, stage.gaussian) / 255)
        return clip_unit(image + sigma * rng.standard_normal(shape, np.float32))
    return clip_unit(image + np.float32(uniform(rng, stage.poisson)) * _poisson_noise(image, grey, rng))


def _poisson_noise(image: np.ndarray, grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Noise of counting as many photons as the image has levels (to the next power of two)."""
    image = clip_unit(image)
    if grey:
        image = (image @ _GREY)[..., None]
    levels = np.rint(image * 255).astype(np.uint8)
    photons = 2.0 ** np.ceil(np.log2(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))))
    light = levels / np.float32(255)
    return (rng.poisson(light * photons) / np.float32(photons) - light).astype(np.float32)


def _filtered(image: np.ndarray, kernel: np.ndarray | None) -> np.ndarray:
    return image if kernel is None else filter_2d(image, kernel)

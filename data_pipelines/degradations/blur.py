"""Blur: camera shake along a path, and a lens out of focus."""

from __future__ import annotations

import numpy as np
import scipy.fft

from data_pipelines.degradations.fields import check_image, clip_unit, shorter_side, uniform
from data_pipelines.degradations.light import GAMMA, to_display, to_light

# Fractions of the shorter side.
MOTION_LENGTH = (0.03, 0.1)
DEFOCUS_RADIUS = (0.008, 0.026)


def convolve_valid(padded: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """True convolution (the kernel is flipped) by FFT, where the kernel lies inside the array.

    Args: padded (height + k - 1, width + l - 1[, channels]); kernel (k, l).
    Returns (height, width[, channels]).
    """
    rows, columns = padded.shape[:2]
    size = [scipy.fft.next_fast_len(length, real=True) for length in (rows, columns)]
    # Circular wrap-around only reaches the border that is cut off below.
    planes = np.moveaxis(padded[..., None] if padded.ndim == 2 else padded, 2, 0)
    spectrum = scipy.fft.rfft2(planes, size) * scipy.fft.rfft2(kernel.astype(np.float32), size)
    full = scipy.fft.irfft2(spectrum, size)[:, kernel.shape[0] - 1 : rows, kernel.shape[1] - 1 : columns]
    return full[0] if padded.ndim == 2 else np.ascontiguousarray(np.moveaxis(full, 0, 2))


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each channel of (height, width[, channels]) convolved with an odd kernel, borders mirrored."""
    if kernel.shape == (1, 1):
        return image * np.float32(kernel[0, 0])
    border = [(length // 2, length // 2) for length in kernel.shape] + [(0, 0)] * (image.ndim - 2)
    return convolve_valid(np.pad(image, border, mode="symmetric"), kernel)


def disk_kernel(radius: float) -> np.ndarray:
    """A filled circle of `radius` pixels, float32, sum 1, its rim antialiased over one pixel."""
    reach = int(np.ceil(max(radius, 0.0)))
    offset = np.arange(-reach, reach + 1, dtype=np.float32)
    distance = np.hypot(offset[:, None], offset[None, :])
    kernel = np.clip(np.float32(radius) + 0.5 - distance, 0, 1)
    kernel[reach, reach] = max(kernel[reach, reach], 1e-3)
    return kernel / kernel.sum()


def trajectory_kernel(path: np.ndarray) -> np.ndarray:
    """The blur kernel of a camera that spends equal time in each point of `path`.

    Args: path, float (points, 2): x to the right and y downwards, in pixels.
    Returns float32 (odd, odd), sum 1, its centre of mass within rounding in the middle, so that the
    blurred image stays registered with the sharp one.
    """
    path = path - path.mean(axis=0)
    reach = int(np.ceil(np.abs(path).max())) if path.size else 0
    size = 2 * reach + 1
    corner = np.floor(path).astype(np.int64)
    fraction = path - corner
    kernel = np.zeros(size * size)
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.prod(np.where(step, fraction, 1 - fraction), axis=1)
        x, y = np.clip(corner + step + reach, 0, size - 1).T
        kernel += np.bincount(y * size + x, weights=weight, minlength=size * size)
    return (kernel / kernel.sum()).reshape(size, size).astype(np.float32)


def straight_path(length: float, angle: float) -> np.ndarray:
    """`length` pixels travelled at constant speed; angle in degrees, 0 to the right, 90 upwards."""
    along = np.linspace(-0.5, 0.5, 2 * int(np.ceil(length)) + 2) * max(length, 0.0)
    direction = np.deg2rad(angle)
    return np.stack([along * np.cos(direction), -along * np.sin(direction)], axis=1)


def shake_path(length: float, bend: float, rng: np.random.Generator, *, angle: float) -> np.ndarray:
    """A trembling hand's path of `length` pixels that sets out at `angle` degrees: float (points, 2).

    Heading is a random walk that has turned by `bend` radians (standard deviation) at the end, speed varies
    smoothly, and in one path of three a jerk throws it into another direction.
    """
    steps = max(24, 4 * int(np.ceil(length)))
    turn = rng.standard_normal(steps) * (bend / np.sqrt(steps))
    if rng.random() < 1 / 3:
        turn[rng.integers(steps)] += rng.uniform(-1.0, 1.0) * np.pi * min(bend, 1.0)
    heading = np.deg2rad(angle) + np.cumsum(turn)
    speed = np.exp(0.5 * np.sin(np.linspace(0, rng.uniform(1, 3) * np.pi, steps) + rng.uniform(0, 2 * np.pi)))
    speed *= max(length, 0.0) / speed.sum()
    return np.cumsum(np.stack([speed * np.cos(heading), -speed * np.sin(heading)], axis=1), axis=0)


def motion_blur(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    length: float | None = None,
    angle: float | None = None,
    bend: float | None = None,
    gamma: float = GAMMA,
) -> np.ndarray:
    """Camera shake during the exposure: the light is averaged along a straight or curved path.

    Random-trajectory kernels follow the idea of Boracchi and Foi, "Modeling the performance of image
    restoration from motion blur", 2012; averaging the light and not the gamma-encoded values follows Nah,
    Kim and Lee (GoPro), 2017. One kernel for the whole image: no moving objects, no camera roll.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      length: length of the path as a fraction of the shorter side; default uniform in 0.03..0.1.
      angle: initial direction in degrees, 0 to the right, 90 upwards; default any.
      bend: how much a path turns, in radians (standard deviation of the final heading); 0 is a straight
        line at
        constant speed; default 0 in one of three images, else uniform in 0.5..2.5.
      gamma: exponent between display values and light.

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    if length is None:
        length = uniform(rng, MOTION_LENGTH)
    if angle is None:
        angle = uniform(rng, (0, 360))
    if bend is None:
        bend = 0.0 if rng.random() < 1 / 3 else uniform(rng, (0.5, 2.5))
    pixels = length * shorter_side(image)
    path = straight_path(pixels, angle) if bend == 0 else shake_path(pixels, bend, rng, angle=angle)
    return clip_unit(to_display(convolve(to_light(image, gamma), trajectory_kernel(path)), gamma))


def defocus_blur(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    radius: float | None = None,
    gamma: float = GAMMA,
) -> np.ndarray:
    """A lens out of focus: every point becomes a disk, the image of the aperture.

    The circle of confusion of geometrical optics (Potmesil and Chakravarty, "A lens and aperture camera
    model for synthetic image generation", 1981). One radius for the whole image, unlike real sets
    (DPDD), where it follows depth.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      radius: of the disk, as a fraction of the shorter side; default uniform in 0.008..0.026.
      gamma: exponent between display values and light.

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    if radius is None:
        radius = uniform(rng, DEFOCUS_RADIUS)
    kernel = disk_kernel(radius * shorter_side(image))
    return clip_unit(to_display(convolve(to_light(image, gamma), kernel), gamma))

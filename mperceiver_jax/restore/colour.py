"""Colour fixes: give a restored image the colours of the degraded one.

Both take float images with the last three axes (height, width, channels) and any number
of axes before them, and return float32 that is not clipped. They suit restorations whose
colours drift; where the degradation itself is one of colour (haze, low light) they undo
the restoration.
"""

import numpy as np

LEVELS = 5


def adain(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of every channel of `style`, given to `content` (Huang & Belongie, 2017).

    Standard deviation is sqrt(unbiased variance + 1e-5).

    Args:
        content: the restored image.
        style: the degraded image; may have another height and width.

    Raises:
        ValueError: other axes than height and width differ.
    """
    content, style = np.asarray(content, np.float32), np.asarray(style, np.float32)
    if content.shape[:-3] != style.shape[:-3] or content.shape[-1] != style.shape[-1]:
        raise ValueError(f"adain: content {content.shape} and style {style.shape} do not fit")
    mean, std = _statistics(content)
    target_mean, target_std = _statistics(style)
    return ((content - mean) / std * target_std + target_mean).astype(np.float32)


def wavelet_fix(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """High frequencies of `content` (the restored image) plus low frequencies of `style` (the degraded one).

    Raises:
        ValueError: shapes that differ.
    """
    if np.shape(content) != np.shape(style):
        raise ValueError(f"wavelet_fix: shapes differ, {np.shape(content)} and {np.shape(style)}")
    high, _ = wavelet_split(content)
    _, low = wavelet_split(style)
    return high + low


def wavelet_split(image: np.ndarray, levels: int = LEVELS) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) frequencies by an à-trous decomposition; their sum is the image.

    Level i blurs the last low band with the 3x3 binomial kernel, dilated by 2^i, edges
    replicated; what the blurs take away adds up to the high band.
    """
    image = np.asarray(image, np.float32)
    low = image
    for level in range(levels):
        low = _blur(_blur(low, -3, 2**level), -2, 2**level)
    return image - low, low


def _blur(image: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """[1 2 1] / 4 along one axis, its taps `reach` pixels apart."""
    size = image.shape[axis]
    index = np.arange(size)
    before = np.take(image, np.maximum(index - reach, 0), axis)
    after = np.take(image, np.minimum(index + reach, size - 1), axis)
    return np.float32(0.25) * (before + after) + np.float32(0.5) * image


def _statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = image.astype(np.float64)
    count = image.shape[-3] * image.shape[-2]
    mean = pixels.mean((-3, -2), keepdims=True)
    # A single pixel has no spread.
    variance = np.square(pixels - mean).sum((-3, -2), keepdims=True) / max(count - 1, 1)
    return mean, np.sqrt(variance + 1e-5)

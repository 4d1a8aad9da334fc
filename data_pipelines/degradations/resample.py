"""Resampling without antialiasing, as torch's `interpolate` does it; published degradations are made so."""

from __future__ import annotations

import numpy as np

_CUBIC = -0.75


def resample(
    image: np.ndarray, height: int, width: int, mode: str, scale: tuple[float, float] | None = None
) -> np.ndarray:
    """The image at another size: float32 (height, width, channels), not clipped.

    Args:
      image: float32 (rows, columns, channels).
      mode: 'bilinear' (2 taps), 'bicubic' (4 taps, a = -0.75) or 'area' (mean of the cells touched).
      scale: factors that the size was computed from, where it was rounded down; default: the ratio of sizes.
    """
    rows, columns = image.shape[:2]
    by_row, by_column = scale or (height / rows, width / columns)
    # Fewer rows first: the second pass is then cheaper.
    if height * columns <= rows * width:
        return _along_columns(_along_rows(image, height, by_row, mode), width, by_column, mode)
    return _along_rows(_along_columns(image, width, by_column, mode), height, by_row, mode)


def _along_rows(image: np.ndarray, size: int, scale: float, mode: str) -> np.ndarray:
    if mode == "area":
        return _area(image, size)
    if size == image.shape[0] and scale == 1:
        return image
    taken, weights = _taps(image.shape[0], size, scale, mode)
    flat = image.reshape(image.shape[0], -1)
    result = flat[taken[0]] * weights[0][:, None]
    for index, weight in zip(taken[1:], weights[1:], strict=True):
        result += flat[index] * weight[:, None]
    return result.reshape(size, *image.shape[1:])


def _along_columns(image: np.ndarray, size: int, scale: float, mode: str) -> np.ndarray:
    if mode == "area":
        return _area(image.swapaxes(0, 1), size).swapaxes(0, 1)
    if size == image.shape[1] and scale == 1:
        return image
    taken, weights = _taps(image.shape[1], size, scale, mode)
    result = np.take(image, taken[0], axis=1) * weights[0][None, :, None]
    for index, weight in zip(taken[1:], weights[1:], strict=True):
        result += np.take(image, index, axis=1) * weight[None, :, None]
    return result


def _taps(length: int, size: int, scale: float, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices and float32 weights, each (taps, size); beyond the border the last sample stands."""
    where = (np.arange(size) + 0.5) / scale - 0.5
    if mode == "bilinear":
        where = np.maximum(where, 0)
        first = np.floor(where).astype(np.int64)
        weights = np.stack([1 - (where - first), where - first])
        offsets = np.arange(2)
    elif mode == "bicubic":
        first = np.floor(where).astype(np.int64)
        t = where - first
        a = _CUBIC
        near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1
        far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])
        offsets = np.arange(-1, 3)
    else:
        raise ValueError(f"mode must be 'bilinear', 'bicubic' or 'area', not {mode!r}")
    taken = np.clip(first[None, :] + offsets[:, None], 0, length - 1)
    return taken, weights.astype(np.float32)


def _area(image: np.ndarray, size: int) -> np.ndarray:
    """Means over [floor(i n / m), ceil((i + 1) n / m)), as adaptive average pooling has it."""
    length = image.shape[0]
    if size == length:
        return image
    starts = np.arange(size) * length // size
    ends = -(-(np.arange(size) + 1) * length // size)
    # Neighbouring cells may share a row, so one sum after another; no running sum, which would lose digits.
    total = image[starts].astype(np.float32)
    for step in range(1, int((ends - starts).max())):
        rows = starts + step
        inside = rows < ends
        total[inside] += image[rows[inside]]
    return total / (ends - starts).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1))

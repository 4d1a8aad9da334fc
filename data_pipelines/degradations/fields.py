"""What every degradation needs first: a checked image, its scale, and smooth random fields.

Lengths (streaks, flakes, drops, kernels) are drawn as fractions of the shorter image side. A photograph
reduced to 128 pixels and the same photograph at 768 then look alike: the same scene, the same weather.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def check_image(image: np.ndarray) -> None:
    """Accepts float32 (height, width, 3) in [0, 1]; a monochrome image has three equal channels.

    Raises ValueError that says which of type, shape or range is wrong.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.float32:
        found = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"expected a float32 numpy image, got {found}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"expected an image of shape (height, width, 3), got {image.shape}; "
            "repeat a monochrome image over three channels"
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"expected values in [0, 1], found {low:g} to {high:g} (divide 8-bit values by 255)")


def shorter_side(image: np.ndarray) -> int:
    """The unit of length of every degradation: pixels along the shorter side."""
    return min(image.shape[:2])


def smooth_noise(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field, float32 (height, width), stretched to reach 0 and 1.

    `cells` is the number of independent values along the shorter side: a small random grid, enlarged
    bicubically (value noise). A field with no room to vary (1x1) is 0.5 everywhere.
    """
    side = min(height, width)
    # Sides of one extreme ratio must not ask for millions of cells.
    rows, columns = (min(64 * cells, 1 + round(cells * length / side)) for length in (height, width))
    grid = rng.random((rows, columns), dtype=np.float32)
    field = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    low, high = float(field.min()), float(field.max())
    if high - low < 1e-6:
        return np.full((height, width), 0.5, np.float32)
    return (field - np.float32(low)) / np.float32(high - low)


def uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """One draw from the interval `bounds`."""
    return float(rng.uniform(*bounds))


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """One draw from the interval `bounds` whose logarithm is uniform (for gains)."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def clip_unit(image: np.ndarray) -> np.ndarray:
    """The image as float32 in [0, 1], where the display ends."""
    return np.clip(image, 0.0, 1.0).astype(np.float32, copy=False)

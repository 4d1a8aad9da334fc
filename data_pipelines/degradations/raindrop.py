"""Raindrops on a window or lens: each drop is a little wide-angle lens of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter

from data_pipelines.degradations.fields import check_image, clip_unit, shorter_side, uniform

COVERAGE = (0.06, 0.2)
RADIUS = (0.012, 0.055)
# A drop shows this share of the shorter side, upside down, across its diameter.
VIEW = (0.35, 0.7)


@dataclass(frozen=True)
class Drops:
    """Drops on glass, all float32 (height, width): `mask` opacity in [0, 1]; `row`, `column` where the light of each
    covered pixel comes from, in pixels; `shade` the brightness factor of a drop (dark rim, bright body)."""

    mask: np.ndarray
    row: np.ndarray
    column: np.ndarray
    shade: np.ndarray


def scatter_drops(
    height: int, width: int, rng: np.random.Generator, *, coverage: float, radius: float
) -> Drops:
    """Draws drops until they cover about the share `coverage` of the glass; `radius` of the largest in pixels."""
    side = min(height, width)
    mask = np.zeros((height, width), np.float32)
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    row, column = row.astype(np.float32), column.astype(np.float32)
    shade = np.ones((height, width), np.float32)
    wanted = coverage * height * width
    covered = 0.0
    while covered < wanted:
        size = max(radius * rng.uniform(0.3, 1.0) ** 1.5, 0.5)
        covered += np.pi * size * size
        centre_row, centre_column = rng.uniform(0, height), rng.uniform(0, width)
        stretch, wobble, phase = rng.uniform(1.0, 1.5), rng.uniform(0, 0.12, 2), rng.uniform(0, 2 * np.pi, 2)
        view = side * uniform(rng, VIEW) / 2
        reach = 1.6 * size + 1
        top, bottom = max(0, int(centre_row - reach)), min(height, int(centre_row + reach) + 2)
        left, right = max(0, int(centre_column - reach)), min(width, int(centre_column + reach) + 2)
        y = (np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(centre_row)) / np.float32(size * stretch)
        x = (np.arange(left, right, dtype=np.float32)[None, :] - np.float32(centre_column)) / np.float32(size)
        bearing = np.arctan2(y, x)
        outline = 1 + wobble[0] * np.cos(2 * bearing + phase[0]) + wobble[1] * np.cos(3 * bearing + phase[1])
        distance = np.hypot(x, y) / outline.astype(np.float32)
        # Soft over a fixed share of the radius (the drop is out of focus), at least a pixel.
        soft = np.float32(max(0.3, 1.0 / size))
        opacity = np.clip((1 - distance) / soft + 0.5, 0, 1)
        inside = opacity > 0
        here = np.s_[top:bottom, left:right]
        # The steeper the surface, the farther the light is bent: r / sqrt(1 - r^2) flattened at the rim.
        bend = -np.float32(view) * (0.6 + 0.4 * np.minimum(distance, 1) ** 2)
        np.copyto(row[here], np.float32(centre_row) + bend * y, where=inside)
        np.copyto(column[here], np.float32(centre_column) + bend * x, where=inside)
        tone = 1.08 - 0.45 * np.clip(distance, 0, 1) ** 4 + 0.15 * np.clip(y, -1, 1)
        np.copyto(shade[here], tone.astype(np.float32), where=inside)
        np.maximum(mask[here], opacity, out=mask[here])
    return Drops(mask, row, column, shade)


def add_raindrops(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    coverage: float | None = None,
    radius: float | None = None,
) -> np.ndarray:
    """Drops on the glass in front of the lens: (1 - M) B + M R, with the refracted and blurred background R.

    The composition is that of Qian et al., "Attentive generative adversarial network for raindrop removal from a
    single image" (the RainDrop set), 2018. That each drop shows a wide, inverted, out-of-focus view of the scene is
    the optics of You et al., "Adherent raindrop modeling, detection and removal in video", 2016. Outlines, shading
    and ranges are our own.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      coverage: share of the glass the drops would cover without overlap, 0..1; default uniform in 0.06..0.2.
      radius: of the largest drops as a fraction of the shorter side; default uniform in 0.012..0.055.

    Returns a new float32 image in [0, 1]; pixels outside the drops are untouched.
    """
    check_image(image)
    height, width, _ = image.shape
    side = shorter_side(image)
    coverage = uniform(rng, COVERAGE) if coverage is None else coverage
    radius = uniform(rng, RADIUS) if radius is None else radius
    drops = scatter_drops(height, width, rng, coverage=coverage, radius=radius * side)
    return refract(image, drops)


def refract(image: np.ndarray, drops: Drops) -> np.ndarray:
    """The picture seen through `drops`: float32 (height, width, 3) in [0, 1]."""
    side = shorter_side(image)
    wet = drops.mask > 0
    # A drop squeezes a large view into few pixels: without this average it would sparkle.
    blurred = uniform_filter(image, (max(1, round(side / 16)),) * 2 + (1,), mode="reflect")
    where = np.stack([drops.row[wet], drops.column[wet]])
    seen = np.stack([map_coordinates(blurred[..., c], where, order=1, mode="mirror") for c in range(3)], axis=-1)
    opacity = drops.mask[wet][:, None]
    result = image.copy()
    result[wet] = (1 - opacity) * image[wet] + opacity * np.clip(seen * drops.shade[wet][:, None], 0, 1)
    return clip_unit(result)

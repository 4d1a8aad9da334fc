"""Raindrops on a window or lens: each drop is a little wide-angle lens of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter

from data_pipelines.degradations.fields import check_image, clip_unit, shorter_side, uniform

COVERAGE = (0.06, 0.2)
RADIUS = (0.02, 0.06)
# Radius of the smallest drops relative to the largest, and in pixels.
SPREAD = 0.3
SMALLEST = 0.5
# A drop shows this share of the shorter side, upside down, across its diameter.
VIEW = (0.35, 0.7)


@dataclass(frozen=True)
class Drops:
    """Drops on glass, each field float32 (height, width).

    Attributes:
      mask: opacity in [0, 1]; 0 where the glass is dry.
      row, column: where the light of each wet pixel comes from, in pixels; they may lie outside the image.
      shade: brightness factor of the refracted light (dark rim, bright body).
    """

    mask: np.ndarray
    row: np.ndarray
    column: np.ndarray
    shade: np.ndarray


def scatter_drops(height: int, width: int, rng: np.random.Generator, *, coverage: float, radius: float) -> Drops:
    """As many drops as would cover the share `coverage` of the glass, the largest of `radius` pixels.

    Outlines are ellipses drawn out by gravity, with random lobes; later drops lie over earlier ones.
    """
    mask = np.zeros((height, width), np.float32)
    row, column = np.indices((height, width), np.float32)
    shade = np.ones((height, width), np.float32)
    mean_area = np.pi * max(radius, SMALLEST) ** 2 * (1 + SPREAD + SPREAD**2) / 3
    count = int(np.ceil(coverage * height * width / mean_area))
    sizes = np.maximum(radius * rng.uniform(SPREAD, 1, count), SMALLEST)
    centres = rng.uniform((0, 0), (height, width), (count, 2))
    stretches = rng.uniform(1.0, 1.5, count)
    lobes = rng.uniform(0, 0.12, (count, 2))
    phases = rng.uniform(0, 2 * np.pi, (count, 2))
    views = min(height, width) / 2 * rng.uniform(*VIEW, count)
    # Plain Python numbers: float32 patches stay float32, and small patches are cheap.
    for (cy, cx), size, stretch, (two, three), (turn_two, turn_three), view in zip(
        *(values.tolist() for values in (centres, sizes, stretches, lobes, phases, views)), strict=True
    ):
        reach = 1.25 * (size + 1)
        top, bottom = max(0, int(cy - reach * stretch)), min(height, int(cy + reach * stretch) + 2)
        left, right = max(0, int(cx - reach)), min(width, int(cx + reach) + 2)
        here = np.s_[top:bottom, left:right]
        y = (np.arange(top, bottom, dtype=np.float32)[:, None] - cy) / (size * stretch)
        x = (np.arange(left, right, dtype=np.float32) - cx) / size
        bearing = np.arctan2(y, x)
        outline = 1 + two * np.cos(2 * bearing + turn_two) + three * np.cos(3 * bearing + turn_three)
        squared = (x * x + y * y) / (outline * outline)
        # Out of focus, the rim is soft over a fixed share of the radius, and over a pixel at least.
        opacity = np.clip((1 - np.sqrt(squared)) / max(0.3, 1 / size) + 0.5, 0, 1)
        inside = opacity > 0
        # The steeper the surface, the farther it bends the light.
        bent = np.minimum(squared, 1)
        bend = -view * (0.6 + 0.4 * bent)
        np.copyto(row[here], cy + bend * y, where=inside)
        np.copyto(column[here], cx + bend * x, where=inside)
        # The rim reflects light away; the lower half of a drop shows the bright sky.
        np.copyto(shade[here], 1.08 - 0.45 * bent * bent + 0.15 * np.clip(y, -1, 1), where=inside)
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

    The composition is that of Qian et al., "Attentive generative adversarial network for raindrop removal
    from a single image" (the RainDrop set), 2018. That each drop shows a wide, inverted, out-of-focus view
    of the scene is the optics of You et al., "Adherent raindrop modeling, detection and removal in video",
    2016. Outlines, shading and ranges are our own.

    Args:
      image: float32 (height, width, 3) in [0, 1].
      rng: source of every random choice.
      coverage: share of the glass the drops would cover without overlap, 0..1; default uniform in 0.06..0.2.
      radius: of the largest drops as a fraction of the shorter side; default uniform in 0.02..0.06.

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
    """The image seen through `drops`: float32 (height, width, 3) in [0, 1]."""
    side = shorter_side(image)
    wet = drops.mask > 0
    # A drop squeezes a large view into few pixels: without this average it would sparkle.
    blurred = uniform_filter(image, (max(1, round(side / 16)),) * 2 + (1,), mode="reflect")
    where = np.stack([drops.row[wet], drops.column[wet]])
    channels = np.moveaxis(blurred, 2, 0)
    seen = np.stack([map_coordinates(plane, where, order=1, mode="mirror") for plane in channels], axis=-1)
    opacity = drops.mask[wet][:, None]
    result = image.copy()
    result[wet] = (1 - opacity) * image[wet] + opacity * np.clip(seen * drops.shade[wet][:, None], 0, 1)
    return clip_unit(result)

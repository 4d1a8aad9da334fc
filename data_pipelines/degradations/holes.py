"""Holes: strokes and boxes of an image are lost, as in inpainting with an unknown mask.

Free-form masks of this kind are what inpainting networks train on; shares and sizes are our own choice.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.degradations.fields import check_image, uniform

COVERAGE = (0.05, 0.2)
# Of the shorter side.
WIDTH = (0.02, 0.06)
STEP = (0.1, 0.3)
BOX = (0.05, 0.2)
VERTICES = (3, 7)
# One shape in so many is a box, the others are strokes.
BOXES = 3


def hole_mask(height: int, width: int, rng: np.random.Generator, *, coverage: float) -> np.ndarray:
    """bool (height, width): strokes and boxes, one after the other, until the share `coverage` is lost."""
    mask = Image.new("1", (width, height))
    draw, side = ImageDraw.Draw(mask), min(height, width)
    while np.asarray(mask).mean() < coverage:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.integers(BOXES) == 0:
            right, low = x + side * uniform(rng, BOX), y + side * uniform(rng, BOX)
            draw.rectangle((x, y, right, low), fill=1)
            continue
        points = [(x, y)]
        for _ in range(int(rng.integers(*VERTICES))):
            angle, length = rng.uniform(0, 2 * np.pi), side * uniform(rng, STEP)
            points.append((points[-1][0] + length * np.cos(angle), points[-1][1] + length * np.sin(angle)))
        draw.line(points, fill=1, width=max(1, round(side * uniform(rng, WIDTH))), joint="curve")
    return np.asarray(mask)


def cut_holes(
    image: np.ndarray, rng: np.random.Generator, *, coverage: float | None = None, grey: float = 0.5
) -> np.ndarray:
    """The image with holes filled by one grey.

    Args:
      coverage: least share of the pixels that is lost, 0 to 1; default drawn from `COVERAGE`.
      grey: what stands in the holes.
    """
    check_image(image)
    coverage = uniform(rng, COVERAGE) if coverage is None else coverage
    if not 0 <= coverage <= 1:
        raise ValueError(f"coverage must be in [0, 1], not {coverage}")
    height, width = image.shape[:2]
    mask = hole_mask(height, width, rng, coverage=coverage)
    return np.where(mask[..., None], np.float32(grey), image)

"""A degraded photograph of this package, to try a restoration without an image of one's own."""

from pathlib import Path

import numpy as np

from data_pipelines.images import as_float, read_image
from data_pipelines.sources.folders import bundled_photos
from data_pipelines.tasks import TASKS
from mperceiver_jax.image_files import LoadedImage, write_image

PHOTOGRAPH = bundled_photos("heldout") / "chichen_itza_0.jpg"
SIDE = 512
"""At most so many pixels are cut from the middle, as height and as width."""


def write_example(task: str, output: Path) -> Path:
    """Writes OUTPUT/degraded/example_TASK.png: the middle of a held-out photograph, degraded.

    Args:
        task: the name of one of `tasks.TASKS`.

    Returns:
        The file. It is the same image at every call.
    """
    photograph = as_float(read_image(PHOTOGRAPH))
    top, left = (max(0, side - SIDE) // 2 for side in photograph.shape[:2])
    middle = np.ascontiguousarray(photograph[top : top + SIDE, left : left + SIDE])
    synthesise = next(one.synthesise for one in TASKS if one.name == task)
    path = output / "degraded" / f"example_{task}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, LoadedImage(synthesise(middle, np.random.default_rng(0))))
    return path

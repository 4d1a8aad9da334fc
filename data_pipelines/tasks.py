"""Restoration tasks: name, label, and how a degraded image is made where no pairs exist.

`TASKS` are MPerceiver's nine; `TASK_SETS` has other systems' tasks in the order of their classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines import degradations
from data_pipelines.degradations.protocols import NEARLY_CLEAN, PROTOCOLS


@dataclass(frozen=True)
class Task:
    """One restoration task.

    Attributes:
      name: as written in configs, folders and reports.
      label: the predictor's class and the position in `TASKS`.
      title: name of the degradation in reports.
      synthesise: (image float32 (height, width, 3) in [0, 1], rng) -> degraded image, same type, shape and
        range.
      clean: the class of images that need no restoration. Its degraded images may equal the ground truth, so
        PSNR has no upper bound there and no gain is reported.
    """

    name: str
    label: int
    title: str
    synthesise: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    clean: bool = False


# The order is the class order of the release's degradation predictor; never change it.
TASKS: tuple[Task, ...] = (
    Task("dehaze", 0, "haze", degradations.add_haze),
    Task("desnow", 1, "snow", degradations.add_snow),
    Task("denoise", 2, "Gaussian noise", degradations.add_gaussian_noise),
    Task("derain", 3, "rain", degradations.add_rain),
    Task("deblur_motion", 4, "motion blur", degradations.motion_blur),
    Task("deblur_defocus", 5, "defocus blur", degradations.defocus_blur),
    Task("denoise_real", 6, "camera noise", degradations.add_sensor_noise),
    Task("deraindrop", 7, "raindrops", degradations.add_raindrops),
    Task("lowlight", 8, "low light", degradations.darken),
)


# Labels are the class numbers of the released weights. MiOIR's pairs are made by its own definitions; PIP has
# them on disk, and what stands here makes up for pairs only where there are none.
TASK_SETS: dict[str, tuple[Task, ...]] = {
    "mperceiver": TASKS,
    "pip": (
        Task("denoise", 0, "Gaussian noise", PROTOCOLS["promptir_noise"]),
        Task("derain", 1, "rain", degradations.add_rain),
        Task("dehaze", 2, "haze", degradations.add_haze),
        Task("deblur_motion", 3, "motion blur", degradations.motion_blur),
        Task("lowlight", 4, "low light", degradations.darken),
    ),
    "mioir": (
        Task("blur_gauss", 0, "Gaussian blur", PROTOCOLS["mioir_blur"]),
        Task("denoise", 1, "Gaussian noise", PROTOCOLS["mioir_noise"]),
        Task("jpeg", 2, "JPEG artefacts", PROTOCOLS["mioir_jpeg"]),
        Task("derain", 3, "rain", PROTOCOLS["mioir_rain"]),
        Task("dehaze", 4, "haze", PROTOCOLS["mioir_haze"]),
        Task("lowlight", 5, "low light", PROTOCOLS["mioir_dark"]),
        Task("sr4", 6, "a quarter of the size", PROTOCOLS["mioir_sr4"]),
    ),
}


def with_new_tasks(tasks: Sequence[Task], names: Sequence[str], degradations: Mapping[str, str]) -> tuple[Task, ...]:
    """The tasks, and after them those of other names, whose labels follow.

    Args:
      degradations: name -> published degradation (`degradations.protocols`); a new task that has none exists
        as pairs only.
    """
    known = {task.name for task in tasks}
    fresh = [name for name in names if name not in known]
    made = (PROTOCOLS[degradations[name]] if name in degradations else only_pairs for name in fresh)
    first = max(task.label for task in tasks) + 1
    return (
        *tasks,
        *(
            Task(name, first + k, name, synthesise, clean=degradations.get(name) == NEARLY_CLEAN)
            for k, (name, synthesise) in enumerate(zip(fresh, made, strict=True))
        ),
    )


def only_pairs(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In place of the degradation of a task that has none. Raises ValueError."""
    raise ValueError("this task has pairs only; give it a degradation to make others (data.degradations)")

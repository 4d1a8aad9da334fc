"""The nine restoration tasks: name, label, and how a degraded picture is made where no pairs exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines import degradations


@dataclass(frozen=True)
class Task:
    """One restoration task.

    Attributes:
      name: as written in configs, folders and reports.
      label: the predictor's class and the position in `TASKS`.
      title: for people: what is wrong with the picture.
      synthesise: (image float32 (height, width, 3) in [0, 1], rng) -> degraded image, same type, shape and
        range.
    """

    name: str
    label: int
    title: str
    synthesise: Callable[[np.ndarray, np.random.Generator], np.ndarray]


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


def task_named(name: str) -> Task:
    """The task of that name. Raises ValueError that lists the names there are."""
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(f"no task is named {name!r}; the tasks are {', '.join(task.name for task in TASKS)}")

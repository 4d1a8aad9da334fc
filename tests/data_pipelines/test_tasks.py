"""The table of tasks."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.tasks import TASK_SETS, TASKS, with_new_tasks

NAMES = [
    "dehaze",
    "desnow",
    "denoise",
    "derain",
    "deblur_motion",
    "deblur_defocus",
    "denoise_real",
    "deraindrop",
    "lowlight",
]


def test_labels_follow_the_class_order_of_the_predictor():
    assert [task.name for task in TASKS] == NAMES
    assert [task.label for task in TASKS] == list(range(9))
    assert len({task.title for task in TASKS}) == len({task.synthesise for task in TASKS}) == 9


def test_every_task_degrades_by_its_own_kind():
    """Haze, snow and rain add light to a dark image, low light takes it, blur leaves a flat one alone."""
    dark = np.full((48, 48, 3), 0.2, np.float32)
    change = {task.name: task.synthesise(dark, np.random.default_rng(0)) - dark for task in TASKS}
    for name in ("dehaze", "desnow", "derain"):
        assert change[name].mean() > 0.002 and change[name].min() > -1e-3
    assert change["lowlight"].mean() < -0.1
    for name in ("deblur_motion", "deblur_defocus"):
        assert np.abs(change[name]).max() < 1e-4
    for name in ("denoise", "denoise_real"):
        assert abs(change[name].mean()) < 0.02 < change[name].std()
    assert (change["deraindrop"] == 0).mean() > 0.3 and np.abs(change["deraindrop"]).max() > 0.01


def test_tasks_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS[0].label = 3


def test_other_systems_tasks_are_in_the_order_of_their_classes():
    for tasks in TASK_SETS.values():
        assert [task.label for task in tasks] == list(range(len(tasks)))
    assert [task.name for task in TASK_SETS["pip"]] == ["denoise", "derain", "dehaze", "deblur_motion", "lowlight"]
    assert "".join(t.name[0] for t in TASK_SETS["mioir"]) == "bdjddls"  # b n j r h d s
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    for tasks in TASK_SETS.values():
        for task in tasks:
            assert task.synthesise(image, np.random.default_rng(1)).shape == image.shape


def test_a_new_task_that_degrades_nothing_is_the_clean_class():
    tasks = with_new_tasks(TASKS, ("clean", "jpeg"), {"clean": "nearly_clean", "jpeg": "mioir_jpeg"})
    assert [(task.label, task.name, task.clean) for task in tasks[9:]] == [(9, "clean", True), (10, "jpeg", False)]
    assert not any(task.clean for task in TASKS)

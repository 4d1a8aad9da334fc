"""A whole run of a restorer by regression in small; also a config file, as `tests/support/tiny_experiment.py` is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.initial_params import checkpoint_folder
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.checkpoints.workdir import bind_workdir
from mperceiver_jax.config.experiment import (
    CheckpointConfig,
    Experiment,
    StageConfig,
    from_mapping,
    to_config_dict,
    to_mapping,
)
from mperceiver_jax.config.recipes import regression, small_recipe
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

STEPS = 4
SIDE = 16


def tiny_recipe(prompts: str = "plain") -> Experiment:
    """SRResNet of one block: the network that compiles fastest. An average is kept."""
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=1)
    stage = StageConfig(STEPS, 8, crop=SIDE, ema_decay=0.5, optimizer=optimizer)
    model = regression("mioir_srresnet", SRResNetConfig(width=4, blocks=1, prompts=prompts), "mioir")
    recipe = small_recipe("tiny_regression", model, stage, ("denoise", "lowlight"))
    return replace(
        recipe,
        model=model,
        data=replace(recipe.data, image_size=SIDE, image_scales=(1.0, 1.0), threads=0),
        evaluation=replace(recipe.evaluation, per_task=2, batch_size=4),
        checkpoint=CheckpointConfig(every=2, keep=2, keep_best=1),
        log_every=1,
        seed=5,
    )


def get_config(prompts: str = "explicit") -> ConfigDict:
    return to_config_dict(tiny_recipe(prompts))


def tiny_regression(changes: Mapping[str, Any] | None = None, prompts: str = "plain") -> Experiment:
    """The experiment, with fields changed by their dotted names."""
    mapping = to_config_dict(tiny_recipe(prompts))
    mapping.update_from_flattened_dict(dict(changes or {}))
    return from_mapping(Experiment, mapping.to_dict())


def experiment_of(family: str, network: Any, task_set: str, trained: tuple[str, ...] = (), **model: Any) -> Experiment:
    """An experiment with another network, trained for all tasks of the set or some."""
    described = regression(family, network, task_set, **model)
    recipe = small_recipe("test", described, tiny_recipe().stages["regression"], trained)
    return replace(recipe, model=described)


def finished(
    workdir: Path, experiment: Experiment, averaged: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Writes the workdir of a finished run with random parameters: (the last ones, their average)."""
    bind_workdir(workdir, to_mapping(experiment))
    last = parameters.initial_values(experiment.build(), 1, lambda path, value: value)
    average = {path: value * np.float32(0.9) for path, value in last.items()}
    metadata = {"stage": "regression", "frozen_fingerprint": fingerprint({}), "ema": averaged}
    with Checkpoints(checkpoint_folder(workdir, "regression"), asynchronous=False) as checkpoints:
        checkpoints.save(STEPS, {"trainable": last, "ema": average if averaged else {}}, None, metadata)
    return last, average

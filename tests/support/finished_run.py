"""A workdir as a finished training run leaves it, with random parameters in place of trained ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.config import PipelineConfig
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.initial_params import checkpoint_folder
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.checkpoints.workdir import bind_workdir
from mperceiver_jax.config.experiment import (
    CheckpointConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    RestoreConfig,
    SamplerConfig,
    StageConfig,
    to_mapping,
)
from mperceiver_jax.config.phases import ORDER
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.training.stages.registry import build_stage
from tests.support.tiny_model import tiny_config

STEPS = 2


def nine_classes() -> MPerceiverConfig:
    """The tiny model, with as many degradations as there are tasks."""
    config = tiny_config()
    parts = ("predictor", "adapter", "cm", "drm")
    return replace(config, **{part: replace(getattr(config, part), classes=9) for part in parts})


def experiment() -> Experiment:
    return Experiment(
        variant="test",
        model=nine_classes(),
        data=PipelineConfig(),
        stages={name: StageConfig(steps=STEPS, ema_decay=0.9 * (name == "vae")) for name in ORDER},
        losses=LossConfig(),
        sampler=SamplerConfig(steps=2),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
        restore=RestoreConfig(min_size=48),
        mesh=MeshConfig(),
        from_scratch=True,
    )


def finished_run(workdir: Path, config: Experiment | None = None) -> dict[str, np.ndarray]:
    """Writes the workdir of a run of MPerceiver; returns the parameters that restoring should use."""
    config = config or experiment()
    bind_workdir(workdir, to_mapping(config))
    model = MPerceiver(config.model)
    params = parameters.initial_values(model, config.seed, lambda path, value: value)
    rng = np.random.default_rng(0)
    for name in (name for name in ORDER if name in config.stages):
        stage = build_stage(name, config, model)
        # Moved from where they start, else zero-initialised layers would hide everything behind them.
        trained = {
            path: value + rng.normal(0, 0.05, value.shape).astype(np.float32)
            for path, value in params.items()
            if stage.is_trained(path)
        }
        averaged = name == "vae"
        metadata = {
            "stage": name,
            "frozen_fingerprint": fingerprint({path: value for path, value in params.items() if path not in trained}),
            "ema": averaged,
        }
        # Where there is an average, the last parameters themselves are not what is used.
        last = {path: value * np.nan for path, value in trained.items()} if averaged else trained
        state = {"trainable": last, "ema": trained if averaged else {}}
        with Checkpoints(checkpoint_folder(workdir, name), asynchronous=False) as checkpoints:
            checkpoints.save(STEPS, state, None, metadata)
        params |= trained
    return params

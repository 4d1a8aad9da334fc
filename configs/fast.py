"""A blind restorer in one pass for the nine tasks of `allinone.py` and clean images: NAFNet, 2.0 million parameters.

python -m mperceiver_jax.main --config=configs/fast.py
python -m mperceiver_jax.main --config=configs/fast.py:10
    As the bundled weights `fast` were trained, on the bundled images: about two hours on two busy CPU cores, in one
    run or several that are resumed. The number scales the updates.
"""

from ml_collections import ConfigDict

from data_pipelines.config import PipelineConfig
from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.config.experiment import (
    CheckpointConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    RestoreConfig,
    StageConfig,
    to_config_dict,
)
from mperceiver_jax.models.restorers.nafnet import NAFNetConfig
from mperceiver_jax.models.restorers.registry import RegressionConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig


def get_config(scale: str = "1") -> ConfigDict:
    try:
        factor = float(scale or 1)
    except ValueError:
        raise ValueError(f"configs/fast.py takes a number that scales the updates, not {scale!r}") from None
    return to_config_dict(fast(factor))


def fast(scale: float = 1.0) -> Experiment:
    network = NAFNetConfig(width=16, encoder=(1, 1, 2, 4), middle=2, decoder=(1, 1, 1, 1))
    tasks = (*(task.name for task in TASK_SETS["mperceiver"]), "clean")
    data = PipelineConfig(
        crop=96, image_size=128, image_scales=(1.0, 2.0), severities="mixed", flips="dihedral", threads=1, clip_size=0,
        new_tasks=("clean",), degradations={"clean": "nearly_clean"},
    )  # fmt: skip
    optimizer = OptimizerConfig(
        "muon", 3e-3, "cosine", warmup_steps=100, betas=(0.9, 0.99), weight_decay=0.01, clip_norm=1.0
    )
    return Experiment(
        "fast", RegressionConfig("nafnet", network, tasks, identity_start=True), data,
        {"regression": StageConfig(max(1, round(5000 * scale)), 8, ema_decay=0.998, optimizer=optimizer)},
        losses=LossConfig(lpips_weight=0.0), from_scratch=True, checkpoint=CheckpointConfig(every=300, keep=2),
        evaluation=EvaluationConfig(every=0, per_task=24, batch_size=24, samples=1),
        restore=RestoreConfig(min_size=1, tile=768), log_every=50,
    )  # fmt: skip

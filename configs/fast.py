"""A blind restorer in one pass for the nine tasks of `allinone.py` and clean images: NAFNet, 2.0 million parameters.

python -m mperceiver_jax.main --config=configs/fast.py
python -m mperceiver_jax.main --config=configs/fast.py:10
    As the bundled weights `fast` were trained, on the bundled images: about two hours on two busy CPU cores, in one
    run or several that are resumed. The number scales the updates.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import CheckpointConfig, Experiment, RestoreConfig, StageConfig, to_config_dict
from mperceiver_jax.config.recipes import MUON, regression, small_recipe
from mperceiver_jax.models.restorers.nafnet import NAFNetConfig


def get_config(scale: str = "1") -> ConfigDict:
    try:
        factor = float(scale or 1)
    except ValueError:
        raise ValueError(f"configs/fast.py takes a number that scales the updates, not {scale!r}") from None
    return to_config_dict(fast(factor))


def fast(scale: float = 1.0) -> Experiment:
    model = regression(
        "nafnet", NAFNetConfig(width=16, encoder=(1, 1, 2, 4), middle=2, decoder=(1, 1, 1, 1)), "mperceiver"
    )
    optimizer = replace(MUON, learning_rate=3e-3, warmup_steps=100)
    stage = StageConfig(max(1, round(5000 * scale)), 8, crop=96, ema_decay=0.998, optimizer=optimizer)
    shared = small_recipe("fast", replace(model, tasks=(*model.tasks, "clean")), stage)
    data = replace(
        shared.data, image_size=128, image_scales=(1.0, 2.0), severities="mixed", new_tasks=("clean",),
        degradations={"clean": "nearly_clean"},
    )  # fmt: skip
    return replace(
        shared, data=data, checkpoint=CheckpointConfig(every=300, keep=2), log_every=50,
        evaluation=replace(shared.evaluation, per_task=24, batch_size=24),
        restore=RestoreConfig(min_size=1, tile=768),
    )  # fmt: skip

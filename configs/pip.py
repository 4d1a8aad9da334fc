"""PIP: prompts of a known degradation in the skip connections of a backbone.

python -m mperceiver_jax.main --config=configs/pip.py:small
    Five tasks at a size that trains in a few minutes on two CPU cores, on the bundled photographs.

python -m mperceiver_jax.main --config=configs/pip.py:5task --config.data.images=DIR --config.data.pairs.derain=...
    As published, on Restormer: smooth L1 and the angles between classes, batches of 48 crops of 128, 120 epochs, a
    rate for each epoch. The published shares of the tasks: images=DIR*9 (noise of three strengths, three times each),
    derain=...*120, dehaze=..., deblur_motion=...*5, lowlight=...*20.
    A small classifier, trained at the same time, predicts the class of an image;
    --config.model.condition_source=label takes the true class, as the paper does. A finished run can also use the
    degradation predictor of MPerceiver: `restore` and `evaluate` with --predictor=RUN.

3task           noise, rain and haze
nafnet          five tasks, on NAFNet
5task,faithful  with the slips of the release: 200 epochs of a schedule made for 120, so that the cosine rises
                again; gradients of loss spikes limited; augmentation that never leaves a crop as it is; true classes
"""

from dataclasses import replace

from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import Experiment, LossConfig, StageConfig, to_config_dict
from mperceiver_jax.config.recipes import MUON, SETTINGS, full_recipe, regression, small_recipe, split_variant
from mperceiver_jax.models.restorers.pip import PIPConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

EXAMPLES = {"3task": 142_431, "5task": 162_646}  # per epoch
BATCH = 48
LOSSES = LossConfig(lpips_weight=0.0, regression="smooth_l1", regularizer_weight=0.002)


def get_config(variant: str = "small") -> ConfigDict:
    name, faithful = split_variant("configs/pip.py", variant, ("small", "nafnet", *SETTINGS))
    return to_config_dict(small() if name == "small" else full(name, faithful))


def small() -> Experiment:
    stage = StageConfig(300, 10, crop=48, ema_decay=0.98, optimizer=MUON)
    losses = replace(LOSSES, condition_source="classifier")
    return small_recipe("pip_small", regression("pip", PIPConfig.small()), stage, losses=losses)


def full(name: str, faithful: bool) -> Experiment:
    setting = "5task" if name == "nafnet" else name
    epoch = EXAMPLES[setting] // BATCH
    optimizer = OptimizerConfig(
        learning_rate=3.6e-4, schedule="epochs", warmup_steps=10 * epoch, horizon=120 * epoch, period=epoch,
        start_fraction=0.1, spike_limit=5.0 if faithful else 0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
    )  # fmt: skip
    network = PIPConfig.nafnet() if name == "nafnet" else PIPConfig.release()
    return full_recipe(
        f"pip_{name}" + ("_faithful" if faithful else ""),
        regression("pip", network, condition_source="label" if faithful else "classifier"),
        StageConfig((200 if faithful else 120) * epoch, BATCH, crop=128, optimizer=optimizer),
        SETTINGS[setting],
        LOSSES,
        {"mixing": "proportional", "flips": "dihedral_nonidentity" if faithful else "dihedral"},
    )

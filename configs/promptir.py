"""PromptIR: blind all-in-one restoration by a transformer that prompts itself.

    python -m mperceiver_jax.main --config=configs/promptir.py:small
        Noise, rain and haze at a size that trains in a few minutes on two CPU cores, on the bundled photographs.

    python -m mperceiver_jax.main --config=configs/promptir.py:3task \\
        --config.data.pairs.derain='rain100l:train*120' --config.data.pairs.dehaze=DIR --config.data.images='DIR*9'
        As published: 35 M parameters, L1, batches of 32 crops of 128, 120 epochs (of 142,431 examples) of a
        schedule of 150. For accelerators. The tasks share batches by the number of their images, repeats included:
        clean images count nine times, for noise of three strengths, three times each.

    5task           with motion blur and low light
    3task,faithful  with the slips of the release: the schedule is a table by epoch and one epoch late (two epochs
                    at a rate of zero), and augmentation never leaves a crop as it is
"""

from dataclasses import replace

from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import Experiment, StageConfig, to_config_dict
from mperceiver_jax.config.recipes import MUON, SETTINGS, full_recipe, regression, small_recipe, split_variant
from mperceiver_jax.models.restorers.promptir import PromptIRConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

EXAMPLES = {"3task": 142_431, "5task": 162_646}  # per epoch
BATCH = 32


def get_config(variant: str = "small") -> ConfigDict:
    name, faithful = split_variant("configs/promptir.py", variant, ("small", *SETTINGS))
    return to_config_dict(small() if name == "small" else full(name, faithful))


def small() -> Experiment:
    optimizer = replace(MUON, name="adamw", learning_rate=2e-3)
    stage = StageConfig(900, 9, crop=32, ema_decay=0.98, optimizer=optimizer)
    return small_recipe("promptir_small", regression("promptir", PromptIRConfig.small()), stage, SETTINGS["3task"])


def full(setting: str, faithful: bool) -> Experiment:
    epoch = EXAMPLES[setting] // BATCH
    optimizer = OptimizerConfig(
        learning_rate=2e-4, schedule="epochs" if faithful else "cosine", warmup_steps=15 * epoch, horizon=150 * epoch,
        period=epoch if faithful else 0, lag=1 if faithful else 0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
    )  # fmt: skip
    return full_recipe(
        f"promptir_{setting}" + ("_faithful" if faithful else ""),
        regression("promptir", PromptIRConfig.full()),
        StageConfig(120 * epoch, BATCH, crop=128, optimizer=optimizer),
        SETTINGS[setting],
        data={"mixing": "proportional", "flips": "dihedral_nonidentity" if faithful else "dihedral"},
    )

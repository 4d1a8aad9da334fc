"""AM-PromptIR: a U-shaped network of convolutional attention with a description of the degradation in words as input.

    python -m mperceiver_jax.main --config=configs/am_promptir.py:small
        Noise, rain and haze at a size that trains in a few minutes on two CPU cores, on the bundled photographs.

    python -m mperceiver_jax.main --config=configs/am_promptir.py:3task --config.data.images='DIR*9' \\
        --config.data.pairs.derain='rain100l:train*120' --config.data.pairs.dehaze=DIR
        As published: Charbonnier and 0.01 of the spectrum's distance, batches of 18 crops of 128, 120 epochs of a
        schedule of 150. The words are CLIP embeddings of the degradations' names where --config.model.words=FILE.npy
        gives them (`python -m mperceiver_jax.convert words` writes that file), else fixed vectors that only
        distinguish tasks; a warning at the start and in the report says so. A small classifier, trained at the same
        time, chooses the words of an image; --config.model.condition_source=label takes those of its true class.

    5task           with motion blur and low light
    3task,faithful  what the release computes: token ids used as numbers, the true class as input, a schedule one
                    epoch late, augmentation that never leaves a crop as it is
"""

from dataclasses import replace

from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import Experiment, LossConfig, StageConfig, to_config_dict
from mperceiver_jax.config.recipes import MUON, SETTINGS, full_recipe, regression, small_recipe, split_variant
from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

EXAMPLES = {"3task": 80_637, "5task": 100_852}  # per epoch: the release's without Urban100, which is a test set
URBAN100 = 900
BATCH = 18
LOSSES = LossConfig(lpips_weight=0.0, regression="charbonnier_fft", fft_weight=0.01)


def get_config(variant: str = "small") -> ConfigDict:
    name, faithful = split_variant("configs/am_promptir.py", variant, ("small", *SETTINGS))
    return to_config_dict(small() if name == "small" else full(name, faithful))


def small() -> Experiment:
    stage = StageConfig(150, 8, crop=48, ema_decay=0.98, optimizer=MUON)
    model = regression("am_promptir", AMPromptIRConfig.small())
    losses = replace(LOSSES, condition_source="classifier")
    return small_recipe("am_promptir_small", model, stage, SETTINGS["3task"], losses)


def full(setting: str, faithful: bool) -> Experiment:
    epoch = (EXAMPLES[setting] + (URBAN100 if faithful else 0)) // BATCH
    optimizer = OptimizerConfig(
        learning_rate=2e-4, schedule="epochs" if faithful else "cosine", warmup_steps=15 * epoch, horizon=150 * epoch,
        period=epoch if faithful else 0, lag=1 if faithful else 0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
    )  # fmt: skip
    release = regression("am_promptir", AMPromptIRConfig.release(), condition_source="label")
    return full_recipe(
        f"am_promptir_{setting}" + ("_faithful" if faithful else ""),
        release if faithful else regression("am_promptir", AMPromptIRConfig.full()),
        StageConfig(120 * epoch, BATCH, crop=128, optimizer=optimizer),
        SETTINGS[setting],
        LOSSES,
        {"mixing": "proportional", "flips": "dihedral_nonidentity" if faithful else "dihedral"},
    )

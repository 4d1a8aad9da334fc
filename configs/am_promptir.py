"""AM-PromptIR: a U-shape of convolutional attention that is told in words what is wrong with an image.

    python -m mperceiver_jax.main --config=configs/am_promptir.py:small
        Noise, rain and haze at a size that trains in a few minutes on two CPU cores, on the bundled photographs.

    python -m mperceiver_jax.main --config=configs/am_promptir.py:3task --config.data.images='DIR*9' \\
        --config.data.pairs.derain='rain100l:train*120' --config.data.pairs.dehaze=DIR
        As published: Charbonnier and 0.01 of the spectrum's distance, batches of 18 crops of 128, 120 epochs of a
        schedule of 150. The words are CLIP embeddings of the degradations' names where --config.model.words=FILE.npy
        gives them (`python -m mperceiver_jax.convert words` writes that file), else fixed vectors that only tell tasks
        apart, which is said at the start and in the report. Which words an image gets is for a small classifier to
        say, trained beside; --config.model.condition_source=label takes the truth.

    5task           with motion blur and low light
    3task,faithful  what the release computes: token ids taken for numbers, the true class given, a schedule one
                    epoch late, augmentation that never leaves a crop as it is
"""

from ml_collections import ConfigDict

from mperceiver_jax.config.recipes import SETTINGS, regression_recipe, split_variant
from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig

EXAMPLES = {"3task": 80_637, "5task": 100_852}  # per epoch: the release's without Urban100, which is a test set
URBAN100 = 900
BATCH = 18
LOSSES = {"regression": "charbonnier_fft", "fft_weight": 0.01}


def get_config(variant: str = "small") -> ConfigDict:
    name, faithful = split_variant("configs/am_promptir.py", variant, ("small", *SETTINGS))
    return ConfigDict(small() if name == "small" else full(name, faithful))


def small() -> dict:
    optimizer = {
        "name": "muon",
        "learning_rate": 5e-3,
        "schedule": "cosine",
        "warmup_steps": 30,
        "weight_decay": 0.01,
        "betas": (0.9, 0.99),
        "clip_norm": 1.0,
    }
    stage = {"steps": 150, "batch_size": 8, "crop": 48, "ema_decay": 0.98, "optimizer": optimizer}
    network = AMPromptIRConfig.small()
    return regression_recipe(
        "am_promptir_small",
        "am_promptir",
        network,
        stage,
        trained=SETTINGS["3task"],
        losses=LOSSES | {"condition_source": "classifier"},
        small=True,
    )


def full(setting: str, faithful: bool) -> dict:
    epoch = (EXAMPLES[setting] + (URBAN100 if faithful else 0)) // BATCH
    optimizer = {
        "learning_rate": 2e-4,
        "schedule": "epochs" if faithful else "cosine",
        "warmup_steps": 15 * epoch,
        "horizon": 150 * epoch,
        "period": epoch if faithful else 0,
        "lag": 1 if faithful else 0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
    }
    stage = {"steps": 120 * epoch, "batch_size": BATCH, "crop": 128, "ema_decay": 0.0, "optimizer": optimizer}
    return regression_recipe(
        f"am_promptir_{setting}" + ("_faithful" if faithful else ""),
        "am_promptir",
        AMPromptIRConfig.release() if faithful else AMPromptIRConfig.full(),
        stage,
        trained=SETTINGS[setting],
        model={"condition_source": "label"} if faithful else {},
        losses=LOSSES,
        data={"mixing": "proportional", "flips": "dihedral_nonidentity" if faithful else "dihedral"},
    )

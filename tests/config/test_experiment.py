"""Configurations: to mappings and back without loss, and errors that name the field."""

import importlib.util
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.errors import ConfigError
from tests.support.tiny_experiment import get_config, tiny_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("variant", ["small", "sd21"])
def test_real_configs_survive_mappings_and_json(variant):
    config = load(CONFIGS / "allinone.py").get_config(variant)
    config.pretrained = "weights.safetensors"
    experiment = from_mapping(Experiment, config.to_dict())
    assert experiment.variant == variant
    assert isinstance(experiment.model.unet.channel_mult, tuple)
    assert isinstance(experiment.data.image_scales, tuple)
    mapping = to_mapping(experiment)
    assert from_mapping(Experiment, mapping) == experiment
    assert from_mapping(Experiment, json.loads(json.dumps(mapping))) == experiment
    assert from_mapping(Experiment, ConfigDict(mapping).to_dict()) == experiment


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_file_builds(path):
    config = load(path).get_config()
    if "source" not in config:  # One that has it changes a finished run's: see training/test_adaptation.py.
        config.pretrained = config.pretrained or "weights.safetensors"
        from_mapping(Experiment, config.to_dict())
    assert f"--config=configs/{path.name}" in load(path).__doc__


def test_without_a_variant_every_device_takes_small():
    module = load(CONFIGS / "allinone.py")
    assert module.get_config().to_dict() == module.get_config("small").to_dict()
    with pytest.raises(ValueError, match="variants small, base, base,SCALE and sd21, not 'huge'"):
        module.get_config("huge")


def test_one_number_scales_the_updates_of_base():
    steps = lambda variant: {
        name: stage.steps for name, stage in load(CONFIGS / "allinone.py").get_config(variant).stages.items()
    }
    assert steps("base,2") == {name: 2 * count for name, count in steps("base").items()}


def test_published_weights_are_required_and_both_ways_out_named():
    experiment = from_mapping(Experiment, load(CONFIGS / "allinone.py").get_config("sd21").to_dict())
    with pytest.raises(ConfigError, match=r"^config\.pretrained: .*--config\.pretrained=PATH.*allinone\.py:small"):
        experiment.check_pretrained()


def test_the_view_of_model_and_data_must_agree():
    config = load(CONFIGS / "allinone.py").get_config("small")
    config.data.clip_view = "full"
    with pytest.raises(ConfigError, match=r"data\.clip_view: 'full', but model\.predictor\.view is 'native'"):
        from_mapping(Experiment, config.to_dict())


WRONG = {
    "seeds": (1, r"config\.seeds: no such field; config has variant, model"),
    "stages.vae.step": (1, r"config\.stages\.vae\.step: no such field"),
    "data.weights.fog": (True, r"config\.data\.weights\.fog: float is expected, not True"),
    "seed": ("1", r"config\.seed: int is expected, not '1'"),
    "stages.drm.steps": (2.5, r"config\.stages\.drm\.steps: int is expected, not 2\.5"),
    "stages.vae.optimizer": (3, r"config\.stages\.vae\.optimizer: a group of fields is expected, not 3"),
    "model.unet.channel_mult": (
        (1, "2"),
        r"config\.model\.unet\.channel_mult\[1\]: int is expected, not '2'",
    ),
    "data.image_scales": ((1.0,), r"config\.data\.image_scales: 2 values are expected, not 1"),
    "data.pairs": ([], r"config\.data\.pairs: a group of fields is expected, not \[\]"),
    "on_nonfinite": ("ignore", r"config\.on_nonfinite: one of \('stop', 'skip'\), not 'ignore'"),
    "stages.vae.steps": (-1, r"config\.stages\.vae\.steps: at least 0, not -1"),
    "stages.vae.accumulation": (3, r"config\.stages\.vae\.batch_size: 8 does not divide by accumulation 3"),
    "stages.vae.ema_decay": (1.0, r"config\.stages\.vae\.ema_decay: at least 0 and below 1"),
    "stages.vae.optimizer.schedule": (
        "linear",
        r"config\.stages\.vae\.optimizer\.schedule: one of \('constant', 'cosine'",
    ),
    "checkpoint.every": (0, r"config\.checkpoint\.every: at least 1, not 0"),
    "evaluation.per_task": (0, r"config\.evaluation\.per_task: at least 1, not 0"),
    "restore.tile": (72, r"config\.restore\.tile: 0, or a multiple of 64 of at least 128, not 72"),
    "stages.vae.tasks": (("denoise", "denoise"), r"config\.stages\.vae\.tasks: each once, not denoise, denoise"),
    "log_every": (0, r"config\.log_every: at least 1, not 0"),
    "data.crop": (64, r"config\.data\.crop 64 is larger than image_size 16"),
    "data.clip_view": ("half", r"config\.data\.clip_view: one of \('full', 'crop', 'native'\), not 'half'"),
    "model.unet.groups": (3, r"config\.model\.unet: UNetConfig: width 16 does not divide into 3 groups"),
    "model.unet.context_width": (
        8,
        r"config\.model\.unet\.context_width and text\.width must be equal, not 8 and 16",
    ),
    "model.unet.head_width": (0, r"config\.model\.unet\.head_width: positive"),
}


@pytest.mark.parametrize("field", WRONG)
def test_errors_name_the_field(field):
    value, message = WRONG[field]
    mapping = get_config().to_dict()
    *groups, name = field.split(".")
    holder = mapping
    for group in groups:
        holder = holder[group]
    holder[name] = value
    with pytest.raises(ConfigError, match="^" + message):
        from_mapping(Experiment, mapping)


def test_missing_fields_are_named_and_whole_numbers_are_numbers():
    mapping = get_config().to_dict()
    del mapping["stages"]["prior"]["steps"]
    with pytest.raises(ConfigError, match=r"^config\.stages\.prior\.steps: missing"):
        from_mapping(Experiment, mapping)
    rate = tiny_run({"stages.vae.optimizer.learning_rate": 1.0}).stages["vae"].optimizer.learning_rate
    assert rate == 1.0 and isinstance(rate, float)
    mapping = get_config().to_dict()
    mapping["stages"]["vae"]["optimizer"]["learning_rate"] = 1
    rate = from_mapping(Experiment, mapping).stages["vae"].optimizer.learning_rate
    assert rate == 1.0 and isinstance(rate, float)

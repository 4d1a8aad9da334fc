"""Released weights: one folder in place of a run, bundled, local, or from a hub."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.config import PipelineConfig
from data_pipelines.heldout import heldout_examples
from mperceiver_jax.checkpoints import released
from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.restore import Restorer, RestoreSettings
from tests.support.released_run import released_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return released_run(tmp_path_factory.mktemp("released"))


@pytest.fixture
def run(made):
    return made.workdir


@pytest.fixture
def folder(made):
    return made.weights


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_the_parameters_are_those_of_the_run_in_half_precision(run, folder):
    trained, found = run_params(run), run_params(folder)
    assert found.experiment.model == trained.experiment.model and found.refined
    for path, value in trained.without_placeholders.items():
        np.testing.assert_array_equal(found.values[path], np.asarray(value, np.float16), err_msg=path)
    assert [(stage.name, stage.step) for stage in found.stages] == [(s.name, s.step) for s in trained.stages]
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_it_restores_without_the_run(run, folder):
    image = np.random.default_rng(0).random((24, 20, 3), np.float32)
    np.testing.assert_allclose(
        Restorer.from_pretrained(str(folder))(image), Restorer.from_checkpoint(run)(image), atol=0.02
    )


def test_the_package_holds_weights_that_are_taken_by_name():
    assert "base" in released.bundled_names()
    restorer = Restorer.from_pretrained("base")
    assert restorer.task_names[-1] == "clean"
    assert len(restorer.notes) == 1 and "early" in restorer.notes[0]
    for path, value in restorer.params.items():
        assert jax.numpy.isfinite(value).all(), path


def test_the_fast_weights_restore_in_one_pass_and_all_weights_stay_small():
    restorer = Restorer.from_pretrained("fast")
    assert restorer.sampler is None and restorer.tile == 768
    (example,) = heldout_examples(PipelineConfig(crop=64, image_size=64, clip_size=0, weights={"denoise": 1.0}), 1)
    restored = np.asarray(restorer.restore(example["lq"]).image)
    assert psnr(restored, example["gt"]) > psnr(example["lq"], example["gt"]) + 2
    sizes = [(released.BUNDLED / name / released.WEIGHTS).stat().st_size for name in released.bundled_names()]
    assert len(sizes) == 2 and sum(sizes) <= 20e6


def test_a_folder_is_preferred_where_it_is_written_as_one(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "base")
    assert released.locate("base") == released.BUNDLED / "base"
    assert released.locate("./base").resolve() == tmp_path / "base"


def test_a_repository_of_the_hub_is_read_from_its_cache(folder, tmp_path, monkeypatch):
    """The layout is that of the hub's own client, which reads it here without a network."""
    from huggingface_hub import constants

    repository = tmp_path / "models--somebody--restoration"
    shutil.copytree(folder, repository / "snapshots" / "0a1b2c")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a1b2c")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = released.locate("hf://somebody/restoration")
    assert found == repository / "snapshots" / "0a1b2c"
    assert run_params(found).refined
    with pytest.raises(ConfigError, match="hf://somebody/other cannot be had from the hub"):
        released.locate("hf://somebody/other")
    with pytest.raises(ConfigError, match="give hf://OWNER/NAME"):
        released.locate("hf://other")
    (repository / "snapshots" / "0a1b2c" / released.WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        released.locate("hf://somebody/restoration")


def test_what_released_weights_do_not_have_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="leave --weights out"):
        run_params(folder, "last")
    with pytest.raises(ValueError, match="leave --pretrained out"):
        run_params(folder, pretrained=tmp_path)
    with pytest.raises(FileNotFoundError, match="no released weights; the package holds base"):
        Restorer.from_pretrained("nothing_of_that_name")


def test_damaged_weights_are_named(copy):
    weights = copy / released.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read .*fetch the weights again"):
        run_params(copy)
    weights.write_bytes(whole)
    whole_config = json.loads((copy / "config.json").read_text())
    config = {key: value for key, value in whole_config.items() if key != released.STAGES}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the field 'stages' is missing or damaged"):
        run_params(copy)
    (copy / "config.json").write_text(json.dumps({**whole_config, "notes": "one"}))
    with pytest.raises(ValueError, match="the field 'notes' is damaged"):
        run_params(copy)


def test_weights_of_another_model_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["config"]["model"]["drm"]["width"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not the parameters of the model in config.json; drm\."):
        run_params(copy)


def test_settings_are_those_of_the_run(folder):
    restorer = Restorer.from_pretrained(str(folder), RestoreSettings(refine=False))
    assert restorer.settings.min_size == run_params(folder).experiment.restore.min_size

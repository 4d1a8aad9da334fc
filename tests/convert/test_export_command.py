"""The export command on a training run: which weights it takes, and how it tells of mistakes."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from mperceiver_jax import convert
from mperceiver_jax.config import Experiment, from_mapping
from mperceiver_jax.convert import weight_sources
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.models.mperceiver import MPerceiver
from mperceiver_jax.training.trained_stages import trained_stages
from mperceiver_jax.training.workdir import read_config
from tests.restore.finished_run import finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    return workdir, finished_run(workdir)


def test_a_run_is_exported_as_restoring_would_use_it(run, tmp_path, capsys):
    workdir, used = run
    path = tmp_path / "all.safetensors"
    assert main(["export", str(workdir), f"--output={path}", "--format=safetensors"]) == 0
    found = load_file(path)
    expected = convert.to_torch(MPerceiver(run_experiment(workdir).model), used)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], value) for key, value in expected.items())
    printed = capsys.readouterr().out
    assert (
        "vae: moving average as of update 2" in printed and "drm: last parameters" in printed and str(path) in printed
    )


def run_experiment(workdir):
    return from_mapping(Experiment, read_config(workdir))


def test_the_last_parameters_can_be_taken_instead(run, tmp_path, capsys):
    """In this run they are not numbers, which shows that they were taken, and that such are refused."""
    workdir, _ = run
    path = tmp_path / "all.safetensors"
    arguments = ["export", str(workdir), f"--output={path}", "--format=safetensors", "--weights=trained"]
    assert main(arguments) == 1
    assert "first_stage_model." in (said := capsys.readouterr()).err and "not finite" in said.err
    assert "vae: last parameters" in said.out and not path.exists()


def test_a_run_beside_other_frozen_parameters_is_refused(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace('"seed": 23', '"seed": 24'))
    assert main(["export", str(workdir), f"--output={tmp_path / 'out'}", "--format=diffusers"]) == 1
    assert "was trained beside other frozen parameters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_averages_that_no_stage_kept_are_not_promised(run, monkeypatch):
    stages = [stage._replace(averaged=False) for stage in trained_stages(run[0], run_experiment(run[0]))]
    monkeypatch.setattr(weight_sources, "trained_stages", lambda *_: stages)
    with pytest.raises(ValueError, match="no stage kept a moving average"):
        weight_sources.open_weights(run[0], "ema")


def test_mistakes_in_the_command_are_told_in_one_line(run, tmp_path, capsys):
    workdir, _ = run
    cases = {
        (str(tmp_path), f"--output={tmp_path / 'a.safetensors'}", "--format=release"): "neither",
        (str(workdir), f"--output={tmp_path / 'a.bin'}", "--format=release"): "NAME.safetensors",
        (str(workdir), f"--output={workdir}", "--format=diffusers"): "exists already",
        (str(workdir / "checkpoints"), f"--output={tmp_path / 'b'}", "--format=diffusers"): str(workdir),
    }
    for arguments, message in cases.items():
        assert main(["export", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())

"""The export command on a training run: which weights it takes, and how it tells of mistakes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from mperceiver_jax import convert
from mperceiver_jax.checkpoints import run_params
from mperceiver_jax.checkpoints.pretrained import write_pretrained
from mperceiver_jax.checkpoints.trained_run import trained_stages
from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.convert.open_weights import open_weights
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from tests.support.finished_run import experiment, finished_run, nine_classes


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
    arguments = ["export", str(workdir), f"--output={path}", "--format=safetensors", "--weights=last"]
    assert main(arguments) == 1
    assert "first_stage_model." in (said := capsys.readouterr()).err and "not finite" in said.err
    assert "vae: last parameters" in said.out and not path.exists()


def test_a_run_beside_other_frozen_parameters_is_refused(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace('"seed": 23', '"seed": 24'))
    assert main(["export", str(workdir), f"--output={tmp_path / 'out'}", "--format=diffusers"]) == 1
    assert "was trained with other frozen parameters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_averages_that_no_stage_kept_are_not_promised(run, monkeypatch):
    stages = [stage._replace(averaged=False) for stage in trained_stages(run[0], run_experiment(run[0]))]
    monkeypatch.setattr(run_params, "trained_stages", lambda *_: stages)
    with pytest.raises(ValueError, match="no stage kept a moving average"):
        open_weights(run[0], "ema")


def test_what_neither_pretrained_weights_nor_stages_gave_does_not_pass_for_weights(tmp_path, capsys):
    """Stable Diffusion's own text tower ends where the model does, OpenCLIP's goes on."""
    text = replace(nine_classes().text, layers=2, projection_width=16)
    config = replace(nine_classes(), text=text)
    idle = re.compile(r"text_encoder\.(transformer\.resblocks\.1\.|text_projection|logit_scale)")
    initial = parameters.initial_values(MPerceiver(config), experiment().seed, lambda path, value: value)
    known = [(path, value) for path, value in initial.items() if not idle.match(path) and ".spade." not in path]
    known = [(path, value) for path, value in known if path.startswith(("unet.", "vae.", "text", "predictor."))]
    write_pretrained(tmp_path / "pretrained", known, [])
    stages = {"dual_branch": experiment().stages["dual_branch"]}
    changes = {"model": config, "stages": stages, "from_scratch": False, "pretrained": str(tmp_path / "pretrained")}
    finished_run(tmp_path / "run", replace(experiment(), **changes))
    for form, name in (("release", "a.safetensors"), ("safetensors", "b.safetensors"), ("diffusers", "c")):
        output = tmp_path / name
        assert main(["export", str(tmp_path / "run"), f"--output={output}", f"--format={form}"]) == 0
        file = output / "adapters.safetensors" if form == "diffusers" else output
        told = capsys.readouterr().out
        invented = [key for key in load_file(file) if re.search(r"resblocks\.1\.|text_projection|logit_scale", key)]
        invented = [key for key in invented if key.startswith("cond_stage_model")]
        numbers = sum(value.size for path, value in initial.items() if idle.match(path))
        assert len(invented) == (14 if form == "release" else 0)
        assert (f"note: {numbers:,} of them" in told) == (form == "release")
        written = sum(value.size for path, value in initial.items() if form == "release" or not idle.match(path))
        assert f": {written:,} parameters" in told
        if form == "diffusers":
            assert "text_encoder" not in json.loads((output / "adapters.json").read_text())["parts"]
    # Of pretrained, too, what is there is counted.
    arguments = [f"--output={tmp_path / 'd'}", "--format=diffusers", f"--config={write_config(tmp_path, config)}"]
    assert main(["export", str(tmp_path / "pretrained"), *arguments]) == 0
    assert f": {sum(value.size for _, value in known):,} parameters" in capsys.readouterr().out


def write_config(folder, config):
    text = (
        f"from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({{'model': {to_mapping(config)!r}}})"
    )
    (folder / "config.py").write_text(text)
    return folder / "config.py"


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

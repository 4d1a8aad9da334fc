"""Restorers by regression in the releases' containers: out, in again, and used."""

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.convert.layouts import keymap
from mperceiver_jax.convert.regression_files import import_regression
from mperceiver_jax.convert.weight_sources import of_workdir
from mperceiver_jax.models.swinir import SwinIRConfig
from mperceiver_jax.restore import Restorer
from tests.models.test_am_promptir import TINY as TINY_AM
from tests.tiny_regression import experiment_of, finished

torch = pytest.importorskip("torch")

SWIN = SwinIRConfig(width=8, heads=2, depths=(2,), window=4, tail=8, image_size=8, drop_path=0.0, prompts="explicit")


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swin") / "run"
    experiment = experiment_of("mioir_swinir", SWIN, "mioir")
    return workdir, experiment, *finished(workdir, experiment)


def loaded(module, file):
    """The parameters in a file, strictly."""
    return convert.from_torch(module, convert.read_torch(file))


def test_mioir_gets_both_sets_of_parameters_with_buffers_and_its_classifier(swin, tmp_path):
    workdir, experiment, last, average = swin
    file = tmp_path / "net_g_latest.pth"
    assert main(["export", str(workdir), f"--output={file}", "--format=release"]) == 0
    content = torch.load(file, weights_only=True)
    assert set(content) == {"params", "params_ema"}
    model = experiment.build()
    buffers = keymap(model.network, "release").buffers
    assert buffers and set(buffers) < set(content["params"])
    assert content["params"]["layers.0.residual_group.blocks.0.attn.relative_position_index"].dtype == torch.int64
    for name, values in (("params", last), ("params_ema", average)):
        found = convert.from_torch(model.network, {key: value.numpy() for key, value in content[name].items()})
        assert all(np.array_equal(value, values["network." + path]) for path, value in found.items())
    beside = loaded(model.classifier, tmp_path / "net_g_latest.classifier.pth")
    assert all(np.array_equal(value, average["classifier." + path]) for path, value in beside.items())


def test_what_is_exported_comes_back_as_a_run_that_restores_alike(swin, tmp_path):
    workdir, experiment, *_ = swin
    file = tmp_path / "swin.safetensors"
    assert main(["export", str(workdir), f"--output={file}", "--format=safetensors", "--weights=ema"]) == 0
    again = tmp_path / "again"
    assert import_regression([file, tmp_path / "swin.classifier.safetensors"], again, experiment) == []
    picture = np.random.default_rng(0).random((21, 30, 3), np.float32)
    before, after = (Restorer.from_checkpoint(place).restore(picture) for place in (workdir, again))
    np.testing.assert_array_equal(before.picture, after.picture)
    assert before.probabilities == after.probabilities and len(after.probabilities) == 7


def test_without_a_classifier_the_task_must_be_given(swin, tmp_path):
    workdir, experiment, *_ = swin
    file = tmp_path / "swin.safetensors"
    assert main(["export", str(workdir), f"--output={file}", "--format=safetensors"]) == 0
    (note,) = import_regression([file], tmp_path / "again", experiment)
    assert "must be given" in note
    with pytest.raises(ValueError, match="must be told what is wrong with the pictures"):
        Restorer.from_checkpoint(tmp_path / "again")
    picture = np.random.default_rng(0).random((16, 16, 3), np.float32)
    rain, haze = (Restorer.from_checkpoint(tmp_path / "again", task=task)(picture) for task in ("derain", "dehaze"))
    assert not np.array_equal(rain, haze)


def test_am_promptir_gets_its_dead_tensors_in_lightnings_container(tmp_path):
    experiment = experiment_of("am_promptir", TINY_AM, "pip", told_by="label")
    _, average = finished(tmp_path / "run", experiment)
    file = tmp_path / "am.ckpt"
    assert main(["export", str(tmp_path / "run"), f"--output={file}", "--format=release"]) == 0
    content = torch.load(file, weights_only=True)
    module = experiment.build().network
    dead = keymap(module, "release").dead
    assert {f"net.{key}" for key in dead} < set(content["state_dict"])
    found = loaded(module, file)
    assert all(np.array_equal(value, average["network." + path]) for path, value in found.items())
    assert of_workdir(tmp_path / "run").averaged


def test_mistakes_are_told(swin, tmp_path, capsys):
    workdir, experiment, *_ = swin
    for arguments, message in (
        ([f"--output={tmp_path / 'x.onnx'}", "--format=release"], "must end in one of .safetensors"),
        ([f"--output={tmp_path / 'x'}", "--format=diffusers"], "for MPerceiver only"),
        ([f"--output={tmp_path / 'x.pth'}", "--format=safetensors"], "must be called NAME.safetensors"),
    ):
        assert main(["export", str(workdir), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    other = tmp_path / "other.safetensors"
    convert.write_safetensors(other, {"conv_first.weight": np.zeros((4, 3, 3, 3), np.float32)})
    with pytest.raises(ValueError, match=r"other\.safetensors: The tensors are no SwinIR.*missing"):
        import_regression([other], tmp_path / "again", experiment)
    assert not (tmp_path / "again").exists()

"""Finished runs of restorers by regression in the commands that take any checkpoint."""

import jax
import numpy as np
import pytest
from PIL import Image

from mperceiver_jax.checkpoints.initial_params import checkpoint_folder
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.evaluate.__main__ import main as evaluate
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.models.restorers.nafnet import NAFNetConfig
from mperceiver_jax.models.restorers.pip import PIPConfig
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.__main__ import main as restore
from mperceiver_jax.restore.batched import BatchedRestorer
from mperceiver_jax.restore.settings import RestoreSettings
from tests.support.finished_run import finished_run
from tests.support.tiny_restorer_run import STEPS, experiment_of, finished


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A network that must be told what is wrong, and its classifier."""
    folder = tmp_path_factory.mktemp("run") / "run"
    finished(folder, experiment_of("mioir_srresnet", SRResNetConfig(4, 1, prompts="explicit"), "mioir"))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for side in ("lq", "gt"):
        (folder / side).mkdir()
        Image.fromarray(rng.integers(0, 256, (30, 41, 3), np.uint8)).save(folder / side / "one.png")
    return folder


def test_files_are_restored_whole_and_in_tiles_and_what_is_wrong_is_said(workdir, images, tmp_path, capsys):
    command = [str(images / "lq" / "one.png"), f"--checkpoint={workdir}"]
    assert restore([*command, f"--output={tmp_path / 'whole'}"]) == 0
    told = capsys.readouterr().out
    assert "moving averages, one pass for each image" in told and "41x30" in told and " %" in told
    assert restore([*command, f"--output={tmp_path / 'tiles'}", "--tile=20", "--overlap=10", "--task=derain"]) == 0
    whole, tiles = (np.asarray(Image.open(tmp_path / name / "one.png")) for name in ("whole", "tiles"))
    assert whole.shape == tiles.shape == (30, 41, 3)


def test_a_image_of_one_pixel_is_restored(workdir):
    restored = Restorer.from_checkpoint(workdir).restore(np.full((1, 1, 3), 0.5, np.float32))
    assert restored.image.shape == (1, 1, 3) and sum(restored.probabilities.values()) == pytest.approx(1)


def test_what_is_said_to_be_wrong_counts_more_than_the_classifier(workdir):
    image = np.random.default_rng(1).random((12, 14, 3), np.float32)
    predicted = Restorer.from_checkpoint(workdir).restore(image)
    likely = max(predicted.probabilities, key=predicted.probabilities.get)
    assert sum(predicted.probabilities.values()) == pytest.approx(1)
    results = {
        task: Restorer.from_checkpoint(workdir, RestoreSettings(task=task))(image) for task in (likely, "sr4", "jpeg")
    }
    np.testing.assert_array_equal(results[likely], predicted.image)
    assert not np.array_equal(results["sr4"], results["jpeg"])


def test_many_images_are_restored_as_one_is(workdir):
    mesh = sharding.make_mesh(MeshConfig(data=2), jax.devices()[:2])
    restorer = Restorer.from_checkpoint(workdir)
    images = list(np.random.default_rng(2).random((3, 12, 14, 3), np.float32))
    for one, image in zip(BatchedRestorer(restorer, mesh, 2)(images[:2]), images, strict=False):
        np.testing.assert_allclose(one, restorer(image), atol=1e-6)


def test_a_checkpoint_is_evaluated_with_either_set_of_weights(workdir, images, tmp_path):
    arguments = [f"--checkpoint={workdir}", "--protocol=folder", f"--data={images}", "--metrics=psnr"]
    restored = {}
    for option, kind in (
        ((), "moving averages"),
        (("--weights=ema",), "moving averages"),
        (("--weights=last",), "last"),
    ):
        output = tmp_path / "-".join(("out", *option))
        assert evaluate([*arguments, *option, f"--output={output}"]) == 0
        assert f"weight kind: {kind}" in (output / "report.md").read_text()
        (file,) = output.rglob("one.png")
        restored[option] = file.read_bytes()
    assert restored[()] == restored["--weights=ema",] != restored["--weights=last",]


def test_either_set_of_weights_restores(workdir):
    with Checkpoints(checkpoint_folder(workdir, "regression"), read_only=True) as checkpoints:
        kept = {name: checkpoints.restore_params_only(STEPS, name) for name in ("ema", "trainable")}
    for which, entry in ((None, "ema"), ("ema", "ema"), ("last", "trainable")):
        params = Restorer.from_checkpoint(workdir, weights=which).params
        assert params.keys() == kept[entry].keys()
        assert all(np.array_equal(params[path], value) for path, value in kept[entry].items())


def test_averages_that_were_not_kept_are_not_promised(images, tmp_path, capsys):
    finished(tmp_path / "run", experiment_of("mioir_srresnet", SRResNetConfig(4, 1), "mioir"), averaged=False)
    command = [str(images / "lq"), f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    assert restore([*command, "--weights=ema"]) == 2
    assert "no stage kept a moving average" in capsys.readouterr().err
    assert Restorer.from_checkpoint(tmp_path / "run").weight_kind == "last parameters"


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """(a PIP that has no classifier and was trained for three of its five tasks, a run of MPerceiver)."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = PIPConfig(backbone=NAFNetConfig(4, (1,), 1, (1,)), widths=(8,), sides=(4,))
    three = ("denoise", "derain", "dehaze")
    finished(folder / "pip", experiment_of("pip", sizes, "pip", three, condition_source="label"))
    finished_run(folder / "mperceiver")
    return folder / "pip", folder / "mperceiver"


def test_a_network_is_told_by_the_predictor_of_another_run(predicted):
    pip, mperceiver = predicted
    image = np.random.default_rng(1).random((12, 14, 3), np.float32)
    said = Restorer.from_checkpoint(mperceiver).predict(image)
    restorer = Restorer.from_checkpoint(pip, predictor=mperceiver)
    found = restorer.restore(image)
    noise, rain, haze = said["denoise"] + said["denoise_real"], said["derain"], said["dehaze"]
    wanted = [part / (noise + rain + haze) for part in (noise, rain, haze)]
    assert [*found.probabilities] == ["denoise", "derain", "dehaze", "deblur_motion", "lowlight"]
    np.testing.assert_allclose([*found.probabilities.values()], [*wanted, 0, 0], atol=1e-5)
    likely = max(found.probabilities, key=found.probabilities.get)
    told = {
        task: Restorer.from_checkpoint(pip, RestoreSettings(task=task))(image)
        for task in ("denoise", "derain", "dehaze")
    }
    np.testing.assert_array_equal(found.image, told[likely])
    assert all(not np.array_equal(found.image, other) for task, other in told.items() if task != likely)
    (batched,) = BatchedRestorer(restorer, sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]))([image])
    np.testing.assert_allclose(batched, found.image, atol=1e-6)


def test_the_commands_take_a_predictor(predicted, workdir, images, tmp_path, capsys):
    pip, mperceiver = predicted
    command = [str(images / "lq" / "one.png"), f"--output={tmp_path / 'out'}", f"--predictor={mperceiver}"]
    assert restore([*command, f"--checkpoint={pip}"]) == 0
    told = capsys.readouterr()
    assert " %" in told.out and "may predict desnow, deblur_motion, deblur_defocus, deraindrop" in told.err
    arguments = ["--protocol=folder", f"--data={images}", f"--output={tmp_path / 'figures'}", "--metrics=psnr"]
    assert evaluate([*arguments, f"--checkpoint={pip}", f"--predictor={mperceiver}"]) == 0
    made = (
        np.asarray(Image.open(path)) for path in (tmp_path / "out" / "one.png", *tmp_path.glob("figures/*/*/*.png"))
    )
    np.testing.assert_array_equal(*made)
    capsys.readouterr()
    for checkpoint, more, message in (
        (pip, ["--task=derain"], "task, predictor: give one of them"),
        (mperceiver, [], "predictor: MPerceiver predicts the degradation"),
        (pip, [f"--predictor={workdir}"], "a run of MPerceiver is needed"),
    ):
        assert restore([*command, "--overwrite", f"--checkpoint={checkpoint}", *more]) == 2
        assert message in capsys.readouterr().err


def test_settings_of_other_models_are_refused(workdir, images, tmp_path, capsys):
    command = [str(images / "lq"), f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}"]
    for option, message in (
        ("--steps=5", "has no sampler"),
        ("--task=fog", "task: 'fog' given, one of blur_gauss"),
        ("--tile=8", "tile: 8 pixels with an overlap of 64"),
    ):
        assert restore([*command, option]) == 2
        assert message in capsys.readouterr().err

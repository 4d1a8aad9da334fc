import shutil
import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest

from data_pipelines.tasks import TASKS
from data_pipelines.transforms import clip_view
from mperceiver_jax.checkpoints.manager import CheckpointError
from mperceiver_jax.checkpoints.workdir import bind_workdir
from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.diffusion.restoration import restore_batch
from mperceiver_jax.image_files import LoadedImage
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.random_streams import Streams
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.colour import adain
from mperceiver_jax.restore.settings import RestoreSettings
from tests.support.finished_run import experiment, finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return workdir, finished_run(workdir)


@pytest.fixture(scope="module")
def restorer(run):
    """All its images are padded to one size, so that one program is compiled."""
    return Restorer.from_checkpoint(run[0])


def test_last_parameters_are_taken_of_the_stages_that_keep_an_average(run):
    """In this run those are not numbers; stages trained beside the averages still belong to it."""
    taken = Restorer.from_checkpoint(run[0], RestoreSettings(refine=False), weights="last").params
    for path, value in run[1].items():
        assert np.isnan(taken[path]).all() if path.startswith("vae.") else np.array_equal(taken[path], value)


def copy_of(workdir, tmp_path, without):
    shutil.copytree(workdir, tmp_path / "copy")
    for stage in without:
        shutil.rmtree(tmp_path / "copy" / "checkpoints" / stage)
    return tmp_path / "copy"


def noise(height, width, channels=3, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype, endpoint=True)


def test_the_model_is_what_the_stages_trained_and_the_image_what_it_makes_of_the_padded_one(run, restorer):
    lq = noise(64, 64).astype(np.float32) / 255
    model = MPerceiver(experiment().model)
    parameters.assign(model, run[1])
    args = (lq[None] * 2 - 1, clip_view(lq, 8)[None], Streams(42).key("restore"))
    out, logits = jax.jit(lambda *a: restore_batch(model, restorer.sampler, *a))(*args)
    expected = np.clip((np.asarray(out[0]) + 1) / 2, 0, 1)
    found = restorer.restore(lq)
    np.testing.assert_allclose(found.image, expected, atol=1e-4)
    assert expected.std() > 0.02  # not saturated: the comparison means something
    assert list(found.probabilities) == [task.name for task in TASKS]
    np.testing.assert_allclose(list(found.probabilities.values()), jax.nn.softmax(logits[0]), atol=1e-5)
    np.testing.assert_allclose(list(restorer.predict(lq).values()), list(found.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize("size", [(37, 50), (1, 1), (64, 3)])
def test_any_size_is_padded_by_reflection_and_cut_back(restorer, size):
    lq = noise(*size).astype(np.float32) / 255
    padded = np.pad(lq, ((0, 64 - size[0]), (0, 64 - size[1]), (0, 0)), mode="reflect")
    out = restorer(lq)
    assert out.shape == lq.shape
    np.testing.assert_array_equal(out, restorer(padded)[: size[0], : size[1]])


def test_sizes_are_rounded_up(restorer):
    assert restorer.padded_size(1, 64) == (64, 64)
    assert restorer.padded_size(65, 200) == (128, 256)


def test_every_kind_of_array_comes_back_as_it_was_given(restorer):
    eight = noise(20, 30)
    exact = restorer(eight.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(restorer(eight), np.rint(exact * 255))
    sixteen = eight.astype(np.uint16) * 257  # the same colours
    restored = restorer(sixteen)
    assert restored.dtype == np.uint16
    np.testing.assert_array_equal(restored, np.rint(exact * 65535))
    double = restorer(eight / 255)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, exact, atol=1e-4)

    alpha = noise(20, 30, 1, seed=1)
    with_alpha = restorer(np.concatenate([eight, alpha], -1))
    np.testing.assert_array_equal(with_alpha[..., :3], restorer(eight))
    np.testing.assert_array_equal(with_alpha[..., 3:], alpha)

    grey = restorer(eight[..., 0])
    threefold = restorer(np.repeat(eight[..., :1], 3, -1).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(grey, np.rint(threefold @ np.float32([0.299, 0.587, 0.114]) * 255))

    file = LoadedImage(eight.astype(np.float32) / np.float32(255), bits=16, icc=b"profile")
    restored = restorer(file)
    np.testing.assert_array_equal(restored.pixels, exact)
    assert replace(restored, pixels=None) == replace(file, pixels=None)


def test_the_seed_alone_decides(run, restorer):
    first, second = noise(64, 64), noise(64, 64, seed=1)
    alone = restorer(first)
    restorer(second)
    np.testing.assert_array_equal(restorer(first), alone)
    again, other = (Restorer.from_checkpoint(run[0], RestoreSettings(seed=seed)) for seed in (42, 7))
    again._restore_one = other._restore_one = restorer._restore_one  # the same program: the seed is an argument
    np.testing.assert_array_equal(again(first), alone)
    assert (other(first) != alone).mean() > 0.1


def test_sampler_and_steps_are_as_configured_unless_given(run, restorer):
    assert (restorer.sampler.mode, restorer.sampler.steps) == ("ddim", 2)
    other = Restorer.from_checkpoint(run[0], RestoreSettings(sampler="reference", steps=5))
    assert (other.sampler.mode, other.sampler.steps) == ("reference", 5)


def test_colour_and_rounding_are_applied_last(run, restorer):
    lq = noise(64, 64)
    exact = restorer(lq.astype(np.float32) / np.float32(255))
    fixed = Restorer.from_checkpoint(run[0], RestoreSettings(colour="adain", rounding="truncate"))
    fixed._restore_one = restorer._restore_one  # the same program
    expected = np.clip(adain(exact, lq.astype(np.float32) / np.float32(255)), 0, 1) * np.float32(255)
    np.testing.assert_array_equal(fixed(lq), expected.astype(np.uint8))


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4, 2), np.uint8), r"not \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.full((4, 4, 3), 200.0), "Divide by 255"),
        (np.full((4, 4, 3), np.nan), "finite"),
    ],
)
def test_what_is_no_image_is_refused(restorer, image, message):
    with pytest.raises(ValueError, match=message):
        restorer(image)


@pytest.mark.usefixtures("unchecked_shapes")
def test_settings_out_of_range_are_refused(run):
    for settings, message in [
        ({"seed": -1}, "seed"),
        ({"steps": 0}, "steps"),
        ({"colour": "red"}, "colour"),
        ({"rounding": "up"}, "rounding"),
        ({"sampler": "ddpm"}, "ddpm"),
    ]:
        with pytest.raises(ValueError, match=message):
            Restorer.from_checkpoint(run[0], RestoreSettings(**settings))


def test_without_a_trained_refinement_decodes_plainly_and_says_so(run, restorer, tmp_path):
    workdir = copy_of(run[0], tmp_path, without=["drm"])
    with pytest.warns(UserWarning, match="refinement was not trained"):
        plain = Restorer.from_checkpoint(workdir)
    lq = noise(64, 64)
    assert restorer.settings.refine and not plain.settings.refine
    assert (plain(lq) != restorer(lq)).any()
    asked_for = Restorer.from_checkpoint(run[0], RestoreSettings(refine=False))
    assert not asked_for.settings.refine and not asked_for.notes


def test_stages_that_are_missing_are_named(run, tmp_path):
    workdir = copy_of(run[0], tmp_path, without=["predictor", "dual_branch"])
    with pytest.raises(ValueError, match=r"no checkpoint of predictor, dual_branch \(there are: vae, prior, drm"):
        Restorer.from_checkpoint(workdir)
    with pytest.raises(FileNotFoundError, match="no run"):
        Restorer.from_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_beside_other_frozen_parameters_is_refused(run, tmp_path):
    workdir = copy_of(run[0], tmp_path, without=[])
    # Another seed means other initial values, which the stages have not seen.
    shutil.move(workdir / "checkpoints", tmp_path / "kept")
    (workdir / "config.json").unlink()
    bind_workdir(workdir, to_mapping(replace(experiment(), seed=5)))
    shutil.move(tmp_path / "kept", workdir / "checkpoints")
    with pytest.raises(CheckpointError, match="other frozen parameters"):
        Restorer.from_checkpoint(workdir)


def test_an_unfinished_stage_is_told(run, tmp_path):
    workdir = copy_of(run[0], tmp_path, without=[])
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"steps": 2', '"steps": 5'))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notes = Restorer.from_checkpoint(workdir).notes
    assert "the stage dual_branch is unfinished, at update 2 of 5" in notes
    assert [str(warning.message) for warning in caught] == [f"{workdir}: {note}" for note in notes]

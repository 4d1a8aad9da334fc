"""Failures in whole runs of the tiny experiment are reported with their place, and nothing is lost.

On one device and with a shared compilation cache: what differs between the runs is not what is compiled.
"""

import errno
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.files import naming
from mperceiver_jax import convert
from mperceiver_jax.checkpoints.manager import CheckpointError
from mperceiver_jax.checkpoints.pretrained import is_pretrained_directory
from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.distributed import sharding
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.perceptual import lpips
from mperceiver_jax.training import metric_log, run
from mperceiver_jax.training.deferred_metrics import NonFiniteLoss
from mperceiver_jax.training.metric_log import read_metrics
from mperceiver_jax.training.stages import base
from tests.support.experiment_runs import arrays_equal, checkpointed_values, leave_out_all_but, logged_metrics, train
from tests.support.tiny_experiment import nine_classes, tiny_run

ALL_DEVICES = sharding.make_mesh
pytestmark = pytest.mark.usefixtures("one_device_and_a_cache")


def test_other_pretrained_weights_are_refused_and_moved_ones_are_not(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = []
    for seed in range(2):
        model = MPerceiver(nine_classes())
        parameters.initialise(model, seed)
        files.append(tmp_path / f"priors_{seed}.safetensors")
        save_file(dict(convert.dump(model, layout="release")), files[-1])
    stages = leave_out_all_but("predictor", "dual_branch") | {"losses.train_tower": False}
    given = lambda file: tiny_run(photographs | stages | {"from_scratch": False, "pretrained": str(file)})
    workdir, path = tmp_path / "run", tmp_path / "pretrained.safetensors"
    with pytest.raises(ConfigError, match=r"config\.pretrained: .*pretrained\.safetensors"):
        train(given(path), workdir)
    assert not workdir.exists()
    assert train(given(files[0]), workdir, stop_at=1) is None
    # What reads the run later finds the converted weights.
    assert is_pretrained_directory(read_config(workdir)["pretrained"])
    with pytest.raises(CheckpointError, match=r"predictor/1 was trained with other frozen parameters"):
        train(given(files[1]), workdir)
    shutil.copy(files[0], path)
    assert train(given(path), workdir, stop_at=2) is None
    with pytest.raises(CheckpointError, match=r"predictor/3 was trained with other .*config\.pretrained"):
        train(given(files[1]), workdir)


class Poisoned:
    """The stream of batches with images of NaN where asked for."""

    def __init__(self, batches, bad):
        self._batches, self._bad = batches, bad

    def __next__(self):
        number = self._batches.get_state()["next_batch"]
        batch = next(self._batches)
        return {k: v * np.nan if k == "gt" and number in self._bad else v for k, v in batch.items()}

    def __getattr__(self, name):
        return getattr(self._batches, name)


def test_a_loss_that_is_not_finite_stops_or_is_passed_over(photographs, tmp_path, monkeypatch):
    fields = photographs | leave_out_all_but("vae") | {"stages.vae.steps": 6}
    healthy = base.train_batches
    monkeypatch.setattr(base, "train_batches", lambda *args: Poisoned(healthy(*args), {3, 4}))
    workdir = tmp_path / "run"
    message = rf"vae: loss nan .* at update 4; the last good checkpoint is {workdir}/checkpoints/vae/2\. Continue here"
    with pytest.raises(NonFiniteLoss, match=message):
        train(tiny_run(fields), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints" / "vae").iterdir()) == ["2"]
    with pytest.raises(NonFiniteLoss, match=r"at update 5.*after 1 that were skipped \(config\.max_skipped\).*vae/4"):
        train(tiny_run(fields | {"on_nonfinite": "skip"}), workdir)
    (record,) = train(tiny_run(fields | {"on_nonfinite": "skip", "max_skipped": 2}), workdir)
    assert record["summary"]["skipped"] == 2
    assert [row["step"] for row in read_metrics(workdir / "metrics.jsonl")] == [1, 2, 3, 6]
    assert all(np.isfinite(value).all() for value in checkpointed_values(workdir, "vae").values())


def test_a_workdir_that_was_deleted_during_the_run_is_no_success(photographs, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    monkeypatch.setattr("mperceiver_jax.training.run._record", lambda *_: (workdir / "config.json").unlink())
    with pytest.raises(ConfigError, match=r"was changed during the run: .*config\.json is missing"):
        train(tiny_run(photographs | leave_out_all_but("vae") | {"stages.vae.steps": 1}), workdir)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_continues(photographs, tmp_path, monkeypatch, capsys):
    fields = photographs | leave_out_all_but("vae") | {"stages.vae.steps": 6}
    healthy = base.train_batches
    workdir = tmp_path / "run"
    with monkeypatch.context() as spoiled, pytest.raises(NonFiniteLoss):
        spoiled.setattr(base, "train_batches", lambda *args: Poisoned(healthy(*args), {5}))
        train(tiny_run(fields), workdir)
    checkpoints = workdir / "checkpoints" / "vae"
    for file in (path for path in (checkpoints / "4").rglob("*") if path.is_file() and "/d/" in path.as_posix()):
        file.write_bytes(file.read_bytes()[:20])
    (record,) = train(tiny_run(fields), workdir)
    said = capsys.readouterr().err
    assert f"cannot read {checkpoints}/4/" in said and "continuing at update 2 of 6" in said
    assert record["summary"]["steps"] == 6 and (checkpoints / "4.damaged").is_dir()


class Spoiled(Poisoned):
    """The stream of batches with an image that cannot be read."""

    def __next__(self):
        if self._batches.get_state()["next_batch"] in self._bad:
            raise ValueError("cannot read the image x.png")
        return next(self._batches)


def test_a_bad_image_costs_no_updates(photographs, tmp_path, monkeypatch):
    experiment, workdir = tiny_run(photographs | leave_out_all_but("vae") | {"stages.vae.steps": 6}), tmp_path / "run"
    healthy = base.train_batches
    monkeypatch.setattr(base, "train_batches", lambda *args: Spoiled(healthy(*args), {5}))
    message = rf"^vae: after update 5 of 6: .*x\.png; the last complete checkpoint is {workdir}/checkpoints/vae/5$"
    with pytest.raises(ValueError, match=message):
        train(experiment, workdir)
    monkeypatch.setattr(base, "train_batches", healthy)
    train(experiment, workdir)
    train(experiment, tmp_path / "undisturbed")
    assert logged_metrics(workdir) == logged_metrics(tmp_path / "undisturbed")
    assert arrays_equal(checkpointed_values(workdir, "vae"), checkpointed_values(tmp_path / "undisturbed", "vae"))


def test_a_full_disk_is_reported_with_file_update_and_checkpoint(photographs, tmp_path, monkeypatch):
    def full(self, step, scalars):
        if step == 4:
            with naming(tmp_path / "metrics.jsonl"):
                raise OSError(errno.ENOSPC, "No space left on device")

    workdir = tmp_path / "run"
    monkeypatch.setattr(metric_log.JsonlWriter, "write_scalars", full)
    message = rf"^vae: after update 4 of 6: .*No space left on device: '{tmp_path}/metrics\.jsonl'; "
    with pytest.raises(OSError, match=rf"{message}the last complete checkpoint is {workdir}/checkpoints/vae/2$"):
        train(tiny_run(photographs | leave_out_all_but("vae") | {"stages.vae.steps": 6}), workdir)


def test_lpips_that_is_not_installed_is_off_and_stays_off(photographs, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    experiment = tiny_run(
        photographs | leave_out_all_but("drm") | {"losses.lpips_weight": 0.1, "losses.drm_latents": "perturbed_gt"}
    )
    monkeypatch.setattr(lpips, "available", lambda: False)
    assert train(experiment, workdir, stop_at=1) is None
    assert "LPIPS is off" in capsys.readouterr().out.splitlines()[0]
    # Installed between a stop and its resume.
    monkeypatch.setattr(lpips, "available", lambda: True)
    assert train(experiment, workdir, stop_at=1) is None
    assert "LPIPS stays off" in capsys.readouterr().out.splitlines()[0]
    assert not any("lpips" in row for row in read_metrics(workdir / "metrics.jsonl"))
    # As if it had been there from the beginning, and is gone.
    monkeypatch.setattr(lpips, "available", lambda: False)
    (note,) = workdir.glob("checkpoints/drm/2/record/metadata")
    note.write_text(note.read_text().replace('"lpips_weight": 0.0', '"lpips_weight": 0.1'))
    with pytest.raises(ConfigError, match=r"config\.losses\.lpips_weight: .* was started with LPIPS"):
        train(experiment, workdir)
    note.write_text(note.read_text().replace('"lpips_weight": 0.1', '"lpips_weight": 0.0'))
    (record,) = train(experiment, workdir)
    assert record["losses"]["lpips_weight"] == 0


UNUSABLE = {
    "data.images": ("nowhere", OSError, r"^config\.data\.images: no data folder at nowhere$"),
    "data.heldout_images": ("nowhere", OSError, r"^config\.data\.heldout_images: no data folder at nowhere$"),
    "data.pairs": ({"dehaze": {"lq": "nowhere", "gt": "x"}}, OSError, r"^config\.data\.pairs\.dehaze: no data folder"),
    "data.weights": ({"fog": 1.0}, ValueError, r"^config\.data\.weights\.fog: no task is named so; the tasks are"),
    "stages.vae.batch_size": (12, ConfigError, r"config\.stages\.vae\.batch_size: 12 .* over the 8 devices"),
    "stages.vae.crop": (15, ConfigError, r"config\.stages\.vae\.crop: 15 is not a multiple of 2"),
    "stages.prior.crop": (20, ConfigError, r"config\.stages\.prior: crop 20 is larger than image_size 16"),
    "stages.vea": ({"steps": 1}, ValueError, r"config\.stages\.vea: no such stage"),
    "evaluation.per_task": (5, ValueError, r"^config\.evaluation\.per_task must be 1 to 4"),
    "mesh.data": (3, ValueError, r"^config\.mesh \(data=3"),
}


@pytest.mark.parametrize("field", UNUSABLE)
def test_what_cannot_run_is_reported_before_anything_is_written(photographs, tmp_path, monkeypatch, field):
    value, kind, message = UNUSABLE[field]
    monkeypatch.setattr(sharding, "make_mesh", ALL_DEVICES)
    changes = photographs | {field: value}
    with pytest.raises(kind, match=message):
        run.run_experiment(tiny_run(changes), tmp_path / "run", HeldoutEvaluator)
    assert not (tmp_path / "run").exists()


def test_nothing_to_do_is_a_mistake(photographs, tmp_path):
    with pytest.raises(ConfigError, match="no stage has steps"):
        train(tiny_run(photographs | leave_out_all_but()), tmp_path / "run")

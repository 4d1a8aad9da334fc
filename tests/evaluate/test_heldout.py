"""Evaluation on held-out images: right numbers, whatever the batches and the mesh."""

import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.heldout import heldout_examples
from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, Preemption
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig
from mperceiver_jax.models.restorers.registry import RegressionConfig
from mperceiver_jax.restore import Restorer
from mperceiver_jax.restore.settings import RestoreSettings
from tests.support.tiny_experiment import tiny_run, write_photographs
from tests.support.tiny_model import tiny_values
from tests.support.tiny_restorer_run import tiny_regression


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Experiment, model, and values that are nowhere zero where it matters."""
    folder = tmp_path_factory.mktemp("photographs")
    changes = {"data.images": str(write_photographs(folder / "train")), "evaluation.per_task": 3}
    heldout = str(write_photographs(folder / "heldout", seed=1))
    experiment = tiny_run(changes | {"data.heldout_images": heldout})
    model = MPerceiver(experiment.model)
    return experiment, model, tiny_values(model)


def evaluator(setting, mesh: MeshConfig, batch_size: int, workdir=None):
    experiment, model, values = setting
    devices = jax.devices()[: max(mesh.data, 1) * mesh.fsdp]
    mesh = sharding.make_mesh(mesh, devices)
    experiment = replace(experiment, evaluation=replace(experiment.evaluation, batch_size=batch_size))
    params = sharding.ParameterLayout(mesh).place_all(values)
    return HeldoutEvaluator(experiment, model, mesh, workdir), params


def test_figures_do_not_depend_on_batches_or_devices(setting):
    # Six examples: batches of four leave a rest, which is filled up with examples seen before.
    results = []
    for mesh, size in [(MeshConfig(data=1), 6), (MeshConfig(data=1), 4), (MeshConfig(data=2), 4)]:
        heldout, params = evaluator(setting, mesh, size)
        results.append(heldout.evaluate("predictor", params))
    assert results[0] == results[1] == results[2]
    confusion = np.array(results[0]["predictor"]["confusion"])
    # Three images each of the tasks 0 and 2.
    assert confusion.sum(1).tolist() == [3, 0, 3, 0, 0, 0, 0, 0, 0]
    assert results[0]["scalars"]["accuracy"] == np.trace(confusion) / 6


def test_figures_of_a_network_that_mixes_a_batch_are_those_of_images_alone(tmp_path):
    """As the release of AM-PromptIR does with the words of a batch; the restorer has no batches."""
    changes = {f"data.{name}": str(write_photographs(tmp_path / name)) for name in ("images", "heldout_images")}
    sizes = AMPromptIRConfig(
        dim=8, blocks=(1, 1, 1, 1), refinement_blocks=1, prompt_sides=(4, 4, 4), text_path="release"
    )
    tasks = tuple(task.name for task in TASK_SETS["pip"])
    model = RegressionConfig("am_promptir", sizes, tasks, condition_source="label")
    experiment = replace(tiny_regression(changes), model=model)
    built = experiment.build()
    values = {path: 2 * value for path, value in parameters.initial_values(built, 0).items()}
    heldout, params = evaluator((experiment, built, values), MeshConfig(data=1), 4)
    found = heldout.evaluate("regression", params)["tasks"]
    assert set(found) == {"denoise", "lowlight"}
    restorer = Restorer(built, values, RestoreSettings(min_size=1, task="denoise"), tasks=experiment.tasks)
    examples = heldout_examples(experiment.data, 2, tasks=experiment.tasks)
    rows = [examples[k] for k in range(len(examples)) if tasks[examples[k]["task"]] == "denoise"]
    expected = np.mean([psnr(restorer(row["lq"]), row["gt"]) for row in rows])
    assert found["denoise"]["restored"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_the_autoencoder_is_measured_on_clean_images(setting, tmp_path):
    experiment, model, values = setting
    heldout, params = evaluator(setting, MeshConfig(data=1), 4, tmp_path)
    scalars = heldout.evaluate("vae", params, final=True)["scalars"]
    structure, _ = parameters.split(model)
    examples = heldout_examples(experiment.data, 3)
    gt = np.stack([examples[k]["gt"] for k in range(3)])

    @jax.jit
    def reconstruct(values, image):
        merged = parameters.merge(structure, values)
        return (merged.decode(merged.encode(image * 2 - 1)[0]) + 1) / 2

    out = np.clip(reconstruct({k: jnp.asarray(v) for k, v in values.items()}, gt), 0, 1)
    expected = np.mean([psnr(a, b) for a, b in zip(np.asarray(out), gt, strict=True)])
    np.testing.assert_allclose(scalars["psnr"], expected, rtol=1e-4)
    assert scalars["score"] == scalars["psnr"] == heldout("vae", params, 1)["psnr"]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["vae.png"]


def test_a_signal_ends_it_between_two_batches(setting):
    experiment, model, values = setting
    preemption = Preemption()
    heldout = HeldoutEvaluator(experiment, model, mesh := sharding.make_mesh(), None, preemption)
    seen = []

    def compute(params, batch, key):
        seen.append(len(batch["task"]))
        signal.raise_signal(signal.SIGTERM)
        return np.zeros(len(batch["task"]))

    heldout.compiled = lambda name, function: compute
    with preemption, pytest.raises(Preempted, match="predictor: stopped in the held-out evaluation"):
        heldout.evaluate("predictor", sharding.ParameterLayout(mesh).place_all(values))
    assert seen == [experiment.evaluation.batch_size]


def test_too_few_images_are_told_at_once(setting):
    experiment, model, _ = setting
    experiment = replace(experiment, evaluation=replace(experiment.evaluation, per_task=5))
    with pytest.raises(ValueError, match=r"per_task must be 1 to 4 \(held-out images\), not 5"):
        HeldoutEvaluator(experiment, model, sharding.make_mesh(), None)


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_clean_images_are_reported_apart_from_the_means(setting, error):
    """Their degraded PSNR is infinite, and that of an exact output is, too; scores stay finite."""
    experiment, _, _ = setting
    changes = {
        "new_tasks": ("clean",),
        "degradations": {"clean": "nearly_clean"},
        "weights": {"denoise": 1, "clean": 1},
    }
    experiment = replace(experiment, data=replace(experiment.data, **changes))
    heldout = HeldoutEvaluator(experiment, setting[1], sharding.make_mesh(), None)
    examples = heldout.examples()
    rows = [examples[k] for k in range(len(examples))]
    assert any(np.array_equal(row["lq"], row["gt"]) for row in rows if row["task"] == 9)
    outputs = [(np.abs(row["gt"] - np.float32(error)), np.eye(10)[row["task"]]) for row in rows]
    found = heldout.restorations("drm", outputs, final=False)
    noisy, clean = found["tasks"]["denoise"], found["tasks"]["clean"]
    assert clean["clean"] and clean["degraded"]["psnr"] == float("inf") and "clean" not in noisy
    assert found["scalars"]["degraded_psnr"] == noisy["degraded"]["psnr"] < 40
    assert found["scalars"]["score"] == noisy["restored"]["psnr"]
    assert found["scalars"]["clean_psnr"] == clean["restored"]["psnr"]
    assert clean["restored"]["psnr"] == (pytest.approx(40, abs=0.5) if error else float("inf"))
    assert found["scalars"]["accuracy"] == 1

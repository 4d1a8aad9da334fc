"""Training the dual branch on stored observations: the same loss, no towers, resumable, never another's."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.pipeline import train_batches
from data_pipelines.stored.features import FeatureStore, part_path
from data_pipelines.stored.manifest import read_manifest
from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.config.phases import ORDER, data_config
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preemption
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import VisionTower
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.mperceiver.vae import AutoencoderKL
from mperceiver_jax.training import cost_estimate, run
from mperceiver_jax.training.cost_estimate import StagePlan
from mperceiver_jax.training.metric_log import read_metrics
from mperceiver_jax.training.stages import feature_cache
from mperceiver_jax.training.stages.dual_branch import observe
from mperceiver_jax.training.stages.registry import build_stage
from tests.support.processes import run_processes
from tests.support.tiny_experiment import BATCH, STEPS, tiny_run, write_photographs
from tests.support.tiny_model import single_scale_config, tiny_batch, tiny_experiment, tiny_values


def test_the_loss_on_stored_observations_is_that_on_their_images_and_runs_no_tower(monkeypatch):
    model = MPerceiver(single_scale_config())
    stage = build_stage("dual_branch", tiny_experiment(model.config), model)
    structure, values = parameters.split(model)[0], tiny_values(model)
    # Nothing at zero, so that everything observed has a part in the loss.
    rng = np.random.default_rng(0)
    values |= {k: 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in values.items() if not v.any()}
    images = tiny_batch(4)

    @jax.jit
    def observed(values, batch):
        return observe(parameters.merge(structure, values), batch, jnp.dtype("float32"))

    loss = jax.jit(lambda values, batch: stage.loss(values, batch, jax.random.key(7), 0)[0])
    stored = jax.tree.map(np.asarray, observed(values, images)._asdict())
    expected, found = float(loss(values, images)), float(loss(values, stored))
    assert abs(found - expected) <= 1e-6 * expected
    for name, other in (("lq", stored["gt"]), ("gt", stored["lq"]), ("embedding", stored["embedding"][::-1])):
        assert abs(float(loss(values, stored | {name: other})) - expected) > 1e-5 * expected, name

    def refuse(*given):
        raise AssertionError("a tower runs")

    for tower in (AutoencoderKL, VisionTower):
        monkeypatch.setattr(tower, "encode" if tower is AutoencoderKL else "__call__", refuse)
    traced = lambda batch: jax.eval_shape(
        lambda values, key: stage.loss(values, batch, key, 0), values, jax.random.key(7)
    )
    traced(stored)
    with pytest.raises(AssertionError, match="a tower runs"):
        traced(images)


class StopsAfterOneBatch(Preemption):
    calls = 0

    def requested(self) -> bool:
        self.calls += 1
        return self.calls > 1


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """(experiment with a cache, start it in a workdir)."""
    one = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda config: one)
    monkeypatch.setattr(cost_estimate, "plan_stage", lambda e, m, name: StagePlan(name, "", 0, 0, 0, 0.0))
    monkeypatch.setattr(feature_cache, "PART", BATCH)
    changes = {f"stages.{name}.steps": 0 for name in ORDER if name != "dual_branch"}
    changes |= {"cache": str(tmp_path / "cache"), "cached_examples": 2 * BATCH - 1}
    changes |= {"data.images": str(write_photographs(tmp_path / "photos"))}
    changes |= {"data.heldout_images": changes["data.images"]}

    class Nothing:
        def __call__(self, stage, params, step):
            return {}

        def evaluate(self, stage, params, final=False):
            return {"scalars": {}}

    return tiny_run(changes), lambda experiment, name: run.run_experiment(
        experiment, tmp_path / name, lambda *_: Nothing()
    )


def test_a_run_fills_its_cache_goes_on_where_it_stopped_and_trains(prepared, monkeypatch):
    experiment, start = prepared
    folder = Path(experiment.cache)
    with monkeypatch.context() as patch:
        patch.setattr(run, "Preemption", StopsAfterOneBatch)
        assert start(experiment, "first") is None
    first = part_path(folder, 0, 0)
    assert first.is_file() and not part_path(folder, 1, 0).exists()
    written = first.stat().st_mtime_ns
    assert start(experiment, "first") is not None
    assert first.stat().st_mtime_ns == written

    # What lies there is what the towers make of the stage's own stream of crops.
    store, config = FeatureStore(folder), data_config(experiment, "dual_branch")
    assert len(store) == 2 * BATCH
    model = MPerceiver(experiment.model)
    structure, _ = parameters.split(model)
    values = parameters.initial_values(model, experiment.seed)
    with train_batches(config) as batches:
        batch = [next(batches) for _ in range(2)][1]
    seen = jax.jit(lambda v, b: observe(parameters.merge(structure, v), b, jnp.dtype("float32")))(values, batch)
    for name, value in seen._asdict().items():
        stored = np.stack([store[BATCH + k][name] for k in range(BATCH)])
        np.testing.assert_allclose(stored, value, atol=1e-5)
    spec = build_stage("dual_branch", experiment, model).batch_spec(1)
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    assert shapes == {name: ((1, *value.shape), value.dtype) for name, value in store[0].items()}
    assert len(read_metrics(first.parents[1] / "first" / "metrics.jsonl")) == STEPS


TWO_PROCESSES = """
    import json, sys
    import jax
    from mperceiver_jax.config.experiment import Experiment, from_mapping
    from mperceiver_jax.training import run
    from mperceiver_jax.training.stages import feature_cache
    from mperceiver_jax.distributed.runtime import Preemption

    class Nothing:
        def evaluate(self, stage, params, final=False):
            return {"scalars": {}}

    class StopsAfterOnePart(Preemption):
        calls = 0

        def requested(self):
            self.calls += 1
            return self.calls > 1

    feature_cache.PART = 1
    experiment = from_mapping(Experiment, json.loads(sys.argv[1]))
    start = lambda: run.run_experiment(experiment, sys.argv[2], lambda *_: Nothing())
    run.Preemption = StopsAfterOnePart
    stopped = start()
    run.Preemption = Preemption
    print(stopped, start()[0]["summary"]["steps"])
"""


def test_two_processes_fill_one_cache_each_its_own_rows_and_go_on_where_they_stopped(prepared, tmp_path):
    experiment, start = prepared
    assert start(experiment, "alone") is not None
    alone = FeatureStore(experiment.cache)
    together = replace(experiment, cache=str(tmp_path / "together"))
    arguments = [json.dumps(to_mapping(together)), tmp_path / "run"]
    outputs = run_processes(TWO_PROCESSES, devices=1, args=arguments)
    assert [output.splitlines()[-1] for output in outputs] == [f"None {STEPS}"] * 2
    store = FeatureStore(together.cache)
    assert len(store) == len(alone) == 2 * BATCH
    assert len(list(Path(together.cache).glob("*.array_record"))) == 4
    for number in range(len(alone)):
        for name, value in alone[number].items():
            np.testing.assert_allclose(store[number][name], value, atol=1e-5, err_msg=f"{name} of {number}")


def test_a_cache_of_other_towers_or_settings_is_refused(tmp_path):
    note = {"towers": "abc", "data": {"crop": 64, "seed": 1}, "layout": {}, "examples": 8, "parts": 2, "hosts": 1}
    folder = tmp_path / "cache"
    feature_cache.bind_cache(folder, note)
    feature_cache.bind_cache(folder, note)
    other = note | {"towers": "abd", "data": {"crop": 32, "seed": 1}, "hosts": 2}
    with pytest.raises(ValueError, match=r"config\.cache: .*\(data\.crop, hosts, towers\); give those again"):
        feature_cache.bind_cache(folder, other)
    for part in range(2):
        part_path(folder, part, 0).touch()
    feature_cache.bind_cache(folder, note | {"hosts": 2, "parts": 1})  # finished: any number of hosts may read it
    assert read_manifest(folder)["hosts"] == 1
    with pytest.raises(ValueError, match="is not empty and does not hold outputs of the frozen towers"):
        feature_cache.bind_cache(tmp_path, note)
    with pytest.raises(ValueError, match="cached_examples: at least 1"):
        replace(tiny_run(), cached_examples=0)

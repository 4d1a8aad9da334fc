"""What a run says it will do."""

from dataclasses import replace

import jax
import numpy as np

from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.training.cost_estimate import (
    TYPICAL_SHARE,
    StagePlan,
    convolution_rate,
    describe,
    plan_stage,
)
from mperceiver_jax.training.stages.registry import build_stage
from tests.support.tiny_experiment import BATCH, SIDE, STEPS, tiny_run
from tests.support.tiny_model import CLIP_SIDE


def test_a_stage_is_counted_without_being_compiled():
    experiment = tiny_run()
    model = MPerceiver(experiment.model)
    plan = plan_stage(experiment, model, "vae")
    _, declared = parameters.split(model)
    assert (plan.name, plan.steps, plan.batch_size) == ("vae", STEPS, BATCH)
    assert plan.trained == sum(leaf.size for path, leaf in declared.items() if path.startswith("vae."))
    # Every pixel meets the first convolution of the encoder, forwards and backwards.
    assert plan.flop > 3 * 2 * BATCH * SIDE**2 * 9 * 3 * experiment.model.vae.base_channels
    stages = dict(experiment.stages) | {"vae": replace(experiment.stages["vae"], accumulation=2)}
    halves = plan_stage(replace(experiment, stages=stages), model, "vae")
    np.testing.assert_allclose(halves.flop, plan.flop, rtol=0.05)


def test_the_batch_of_a_stage():
    spec = lambda experiment: build_stage("drm", experiment, experiment.build()).batch_spec(4)
    batch = spec(tiny_run())
    assert {name: leaf.shape for name, leaf in batch.items()} == {
        "lq": (4, SIDE, SIDE, 3),
        "gt": (4, SIDE, SIDE, 3),
        "lq_clip": (4, CLIP_SIDE, CLIP_SIDE, 3),
        "task": (4,),
    }
    native = spec(tiny_run({"model.predictor.view": "native", "data.clip_view": "native", "data.clip_views": 4}))
    assert native["lq_clip"].shape == (4, 4, CLIP_SIDE, CLIP_SIDE, 3)


def test_time_is_estimated_from_the_rate_of_this_device():
    assert convolution_rate(jax.numpy.dtype("float32"), seconds=0.01) > 1e6
    plans = [StagePlan("vae", "autoencoder", 100, 8, 2_000_000, 1e9), StagePlan("drm", "x", 50, 8, 1, 4e9)]
    lines = describe(plans, rate=1e9 / TYPICAL_SHARE, devices=2)
    assert "vae" in lines[0] and "100 updates of    8" in lines[0] and "2.00 M parameters, about 50 s" in lines[0]
    assert "about 1:40 min" in lines[1]
    assert "about 2:30 min of updates" in lines[2]
    unknown = describe([replace(plans[0], flop=None), plans[1]], rate=1e9 / TYPICAL_SHARE, devices=2)
    assert "parameters: autoencoder" in unknown[0] and "expected: unknown" in unknown[2]

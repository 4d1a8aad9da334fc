"""The recipes of restorers by regression: every variant builds, and schedules are the published ones."""

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import optax
import pytest

from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.config.phases import data_config, expand_curricula, stages_of
from mperceiver_jax.models import parameters
from mperceiver_jax.optim.optimizer import learning_rate_at, make_optimizer

ROOT = Path(__file__).parents[2]


def experiment(file: str, variant: str) -> Experiment:
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_mapping(Experiment, module.get_config(variant).to_dict())


@pytest.mark.parametrize(
    ("file", "variant", "count"),
    [
        ("fast", "0.5", 1_991_923),
        ("promptir", "small", None),
        ("promptir", "3task", 35_376_967),
        ("promptir", "5task,faithful", 35_376_967),
        ("am_promptir", "small", None),
        ("am_promptir", "5task", 52_826_575),
        ("am_promptir", "3task,faithful", 52_506_703),
        ("pip", "small", None),
        ("pip", "3task", 27_316_614),
        ("pip", "nafnet", None),
        ("pip", "5task,faithful", 27_316_614),
        ("mioir", "small", None),
        ("mioir", "small-sequential", None),
        ("mioir", "restormer-explicit-sequential", 26_547_578),
        ("mioir", "uformer-adaptive-5task", 51_489_336),
        ("mioir", "swinir-3task-faithful", 11_604_775),
        ("mioir", "promptir", 35_376_967),
    ],
)
def test_every_recipe_builds_and_its_tasks_have_data(file, variant, count):
    made = expand_curricula(experiment(file, variant))
    assert from_mapping(Experiment, to_mapping(made)) == made
    names = {task.name for task in made.tasks}
    for name in stages_of(made):
        config = data_config(made, name)
        assert set(config.weights) <= names and config.batch_size % max(len(config.weights), 1) >= 0
    if count:
        assert parameters.count(made.build().network) == count


@pytest.mark.parametrize(
    ("file", "variant"),
    [("promptir", "tiny"), ("pip", "small,faithful"), ("am_promptir", "3task,exact"), ("mioir", "vit-explicit")],
)
def test_variants_that_do_not_exist_are_refused(file, variant):
    with pytest.raises(ValueError, match=f"configs/{file}.py has the variants small"):
        experiment(file, variant)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("srresnet-explicit-adaptive", "at most one of explicit, adaptive"),
        ("srresnet-3task-5task", "at most one of 3task, 5task, 7task"),
        ("small-faithful", "small is our own"),
    ],
)
def test_variants_that_contradict_themselves_are_refused(variant, message):
    with pytest.raises(ValueError, match=message):
        experiment("mioir", variant)


def rates(file: str, variant: str, epochs: list[float]) -> list[float]:
    stage = experiment(file, variant).stages["regression"]
    epoch = stage.optimizer.period or stage.optimizer.horizon // (120 if file == "pip" else 150)
    return [learning_rate_at(stage.optimizer, stage.steps, int(at * epoch)) for at in epochs]


def test_promptir_as_released_is_an_epoch_late():
    found = rates("promptir", "3task,faithful", [0, 0.9, 1.9, 2, 2.5, 15, 16, 60, 100, 119])
    expected = [0, 0, 0, 1.4286e-5, 1.4286e-5, 2e-4, 2e-4, 1.520e-4, 6.254e-5, 2.647e-5]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-12)


def test_promptir_by_default_moves_from_the_first_update():
    found = rates("promptir", "3task", [0, 15, 82.5, 119.99])
    assert 0 < found[0] < 1e-8
    np.testing.assert_allclose(found[1:], [2e-4, 1e-4, 1e-4 * (1 + np.cos(np.pi * 105 / 135))], rtol=1e-3)


def test_pip_as_released_rises_again():
    found = rates("pip", "5task,faithful", [0, 1, 9, 10, 60, 100, 119, 199])
    expected = [3.6e-5, 7.2e-5, 3.6e-4, 3.6e-4, 2.056e-4, 2.857e-5, 7.3e-8, 2.94e-4]
    np.testing.assert_allclose(found, expected, rtol=1e-2)
    stage = experiment("pip", "5task").stages["regression"]
    assert stage.steps == stage.optimizer.horizon
    # Without the slips the same table, as far as it was meant to go.
    np.testing.assert_allclose(
        rates("pip", "5task", [0, 1, 9, 60, 119]), [expected[k] for k in (0, 1, 2, 4, 6)], rtol=1e-2
    )
    assert learning_rate_at(stage.optimizer, stage.steps, stage.steps - 1) < 1e-7


def test_mioir_restarts():
    stage = experiment("mioir", "srresnet").stages["regression"]
    cycle = 250_000
    # Updates count from 1 in the release, from 0 here.
    at = lambda update: learning_rate_at(stage.optimizer, stage.steps, update - 1)
    assert stage.steps == 10 * cycle
    np.testing.assert_allclose([at(1), at(cycle + 1), at(cycle + 2)], [2e-4, 1e-7, 2e-4], rtol=1e-3)
    np.testing.assert_allclose([at(cycle // 2 + 1), at(cycle + cycle // 2 + 1)], 1.0005e-4, rtol=1e-3)


def test_released_orders_of_tasks():
    made = expand_curricula(experiment("mioir", "restormer-sequential"))
    phases = [made.stages[name] for name in stages_of(made)]
    assert [phase.steps for phase in phases] == 6 * [100_000] + [400_000]
    added = [(set(after.tasks) - set(before.tasks)).pop() for before, after in itertools.pairwise(phases)]
    assert phases[0].tasks == ("derain",)
    assert added == ["jpeg", "blur_gauss", "sr4", "denoise", "dehaze", "lowlight"]


def test_a_spike_counts_for_half_the_limit():
    config = replace(experiment("pip", "5task,faithful").stages["regression"].optimizer, spike_limit=5.0)
    limiter = make_optimizer(config, 10)
    plain = make_optimizer(replace(config, spike_limit=0.0), 10)
    params, gradient = {"w": np.ones(2, np.float32)}, {"w": np.full(2, 3, np.float32)}
    state = limiter.init(params)
    for value, scale in ((1.0, 1), (2.0, 1), (10.0, 0.25), (4.9, 1)):
        # Adam forgets a common factor: compare what reaches its moments.
        before = optax.tree_utils.tree_get(state, "mu")["w"]
        _, state = limiter.update(gradient, state, params, value=value)
        after = optax.tree_utils.tree_get(state, "mu")["w"]
        np.testing.assert_allclose(after, 0.9 * before + 0.1 * scale * gradient["w"], rtol=1e-5)
    assert len(plain.init(params)) == len(limiter.init(params)) - 1

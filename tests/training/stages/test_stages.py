"""What each stage trains, that it learns, and the losses that have choices."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.config.phases import ORDER
from mperceiver_jax.diffusion.restoration import sample_latent, sampler_of
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.perceptual.lpips import available, load_lpips, lpips
from mperceiver_jax.optim.optimizer import OptimizerConfig, make_optimizer
from mperceiver_jax.training import losses
from mperceiver_jax.training.stages.base import SCHEDULE
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step
from tests.support.tiny_model import tiny_batch, tiny_config, tiny_experiment, tiny_values

KEY = jax.random.key(0)
TRAINED = {
    "vae": r"vae\.",
    "prior": r"text_encoder\.|unet\.(?!.*spade)",
    "predictor": r"predictor\.fc[12]\.(weight|bias)$",
    "dual_branch": r"unet\..*\.spade\.|ir_adapter\.|cm_inv\.|tp$",
    "drm": r"drm\.",
}


class Training:
    """A stage of the tiny model, its step compiled once, without weight decay."""

    def __init__(self, name: str, config=None, batch=None, rate: float = 3e-3, **choices):
        self.model = MPerceiver(config or tiny_config())
        self.stage = build_stage(name, tiny_experiment(self.model.config, **choices), self.model)
        self.values = tiny_values(self.model) | self.stage.extras()
        self.batch = tiny_batch() if batch is None else batch
        self.frozen = {k: jnp.asarray(v) for k, v in self.values.items() if not self.stage.is_trained(k)}
        trained = {k: jnp.asarray(v) for k, v in self.values.items() if self.stage.is_trained(k)}
        optimizer = make_optimizer(OptimizerConfig(learning_rate=rate, weight_decay=0.0), 100)
        self.start = self.state = initial_state(trained, optimizer, ema=False)
        self._step = jax.jit(make_step(self.stage.loss, optimizer))
        self.metrics: Mapping[str, jax.Array] = {}

    def step(self, times: int = 1) -> "Training":
        for _ in range(times):
            self.state, self.metrics = self._step(self.state, self.frozen, self.batch, KEY)
        return self

    def loss_with_the_first_draws(self) -> dict[str, float]:
        """Metrics of the present parameters under the random numbers of the first step."""
        _, metrics = self._step(self.state._replace(step=jnp.int32(0)), self.frozen, self.batch, KEY)
        return {name: float(value) for name, value in metrics.items()}

    def gradients(self) -> dict[str, np.ndarray]:
        """After one step: the gradients, from Adam's first moment."""
        moments = jax.tree_util.tree_leaves_with_path(self.state.opt_state)
        first = {str(path[-1].key): leaf for path, leaf in moments if ".mu" in jax.tree_util.keystr(path)}
        assert first.keys() == self.state.trainable.keys()
        return {path: np.asarray(value) * 10 for path, value in first.items()}

    def with_gradient(self) -> set[str]:
        return {path for path, value in self.gradients().items() if np.any(value)}

    def moved(self) -> set[str]:
        now = self.state.trainable
        return {path for path in now if not np.array_equal(now[path], self.values[path])}


@pytest.fixture(scope="module")
def at_start():
    """Gives a stage by name, at its start; compiled when first asked for."""
    made: dict[str, Training] = {}

    def give(name: str) -> Training:
        if name not in made:
            made[name] = Training(name)
        run = made[name]
        run.state = run.start
        return run

    return give


@pytest.mark.parametrize("name", ORDER)
def test_a_stage_trains_its_own_parameters_and_learns(name, at_start):
    run = at_start(name)
    own = {path for path in parameters.declared(run.model) if re.match(TRAINED[name], path)}
    assert run.state.trainable.keys() == own and not own & run.frozen.keys()
    assert own | run.frozen.keys() == parameters.declared(run.model).keys()
    first = run.loss_with_the_first_draws()
    run.step(6)
    last = run.loss_with_the_first_draws()
    assert last["loss"] < 0.99 * first["loss"] and last["finite"] == 1
    for path, value in run.frozen.items():
        assert np.array_equal(value, run.values[path]), path


def test_dual_branch_gradients_begin_behind_the_zero_kernels_and_reach_everything(at_start):
    run = at_start("dual_branch").step()
    at_first = r"unet\..*\.spade\.(mlp_gamma|mlp_beta|param_free_norm)\.|tp$|cm_inv\."
    trained = run.state.trainable.keys()
    assert run.with_gradient() == {path for path in trained if re.match(at_first, path)}
    assert run.moved() == run.with_gradient()
    run.step(3)
    assert run.moved() == trained


def test_the_refinement_begins_at_its_output_and_reaches_everything(at_start):
    run = at_start("drm").step()
    assert run.moved() == {f"drm.{layer}.{leaf}" for layer in ("mask", "residual") for leaf in ("weight", "bias")}
    run.step(3)
    assert run.moved() == run.state.trainable.keys()


@pytest.mark.parametrize("choice", ["train_tower", "train_cm_inv"])
def test_what_a_stage_trains_can_be_chosen(choice):
    name, part = {"train_tower": ("predictor", "predictor."), "train_cm_inv": ("dual_branch", "cm_inv.")}[choice]
    model = MPerceiver(tiny_config())
    sets = {}
    for on in (True, False):
        stage = build_stage(name, tiny_experiment(**{choice: on}), model)
        sets[on] = {path for path in parameters.declared(model) if stage.is_trained(path)}
    assert {path for path in parameters.declared(model) if path.startswith(part)} <= sets[True]
    assert sets[False] < sets[True] and all(path.startswith(part) for path in sets[True] - sets[False])


def test_a_tower_that_is_trained_learns():
    run = Training("predictor", train_tower=True).step()
    assert "predictor.model.conv1.weight" in run.with_gradient()
    assert run.moved() == {path for path in run.values if path.startswith("predictor.")}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, lambda logits, task: losses.focal_loss(logits, task, 2.0)),
        ({"focal_gamma": 0.5}, lambda logits, task: losses.focal_loss(logits, task, 0.5)),
        ({"predictor": "cross_entropy"}, losses.cross_entropy),
    ],
)
def test_the_predictor_loss_is_the_one_chosen(choices, expected):
    run = Training("predictor", **choices)
    values = run.values | {"predictor.fc2.weight": 4 * run.values["predictor.fc2.weight"]}
    structure, _ = parameters.split(run.model)
    task, view = run.batch["task"], run.batch["lq_clip"]

    @jax.jit
    def both(values):
        found = run.stage.loss(values, run.batch, KEY, 0)
        return found, parameters.merge(structure, values).predictor(view)[1]

    (value, metrics), logits = both(values)
    np.testing.assert_allclose(value, expected(logits, task), rtol=1e-5)
    assert metrics["accuracy"] == np.mean(np.argmax(logits, -1) == task)


def test_the_refinement_decodes_what_the_dual_branch_restores():
    run = Training("drm", drm_latents="online")
    structure, _ = parameters.split(run.model)
    sampler = sampler_of(tiny_experiment(run.model.config).sampler)
    lq, gt = (2 * run.batch[name] - 1 for name in ("lq", "gt"))

    @jax.jit
    def both(values):
        found, _ = run.stage.loss(values, run.batch, KEY, 0)
        model = parameters.merge(structure, values)
        latent, _ = sample_latent(model, sampler, lq, run.batch["lq_clip"], jax.random.split(KEY, 3)[0])
        return found, jnp.abs(model.decode(latent) - gt).mean()

    found, expected = both(run.values)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def without_spread(values):
    """An encoder whose posterior is a point, so that samples are exact."""
    weight = values["vae.quant_conv.weight"].copy()
    weight[..., 4:] = 0
    return values | {"vae.quant_conv.weight": weight, "vae.quant_conv.bias": np.float32([0] * 4 + [-60] * 4)}


def test_latents_for_the_refinement_are_the_clean_ones_perturbed():
    exact, perturbed = Training("drm", drm_noise_std=0.0), Training("drm", drm_noise_std=0.5)
    structure, _ = parameters.split(exact.model)
    gt = 2 * exact.batch["gt"] - 1

    @jax.jit
    def all_three(values):
        found = [run.stage.loss(values, exact.batch, KEY, 0)[0] for run in (exact, perturbed)]
        model = parameters.merge(structure, values)
        return *found, jnp.abs(model.decode(model.encode(gt)[0]) - gt).mean()

    without, with_noise, expected = all_three(without_spread(exact.values))
    assert abs(without - expected) < 1e-5 < 1e-4 < abs(with_noise - expected)


def test_the_dual_branch_predicts_noise_in_the_clean_latent_given_the_degraded_one(monkeypatch):
    batch = tiny_batch()

    def oracle(self, x_t, t, condition):
        z, _ = self.encode(2 * batch["gt"] - 1)
        z_lq, _ = self.encode(2 * batch["lq"] - 1)
        context = self.context(*self.perceive(batch["lq_clip"]))
        wrong = jnp.abs(condition.z_lq - z_lq).max() + jnp.abs(condition.context - context).max()
        a = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)[t][:, None, None, None]
        return (x_t - jnp.sqrt(a) * z) / jnp.sqrt(1 - a) + wrong

    monkeypatch.setattr(MPerceiver, "predict", oracle)
    run = Training("dual_branch", batch=batch)
    value, _ = jax.jit(lambda values: run.stage.loss(values, batch, KEY, 0))(without_spread(run.values))
    assert value < 1e-7


def test_the_prior_learns_from_clean_images_under_the_empty_caption():
    stage = build_stage("prior", tiny_experiment(), model := MPerceiver(tiny_config()))
    batch, values = tiny_batch(), tiny_values(model)
    value = jax.jit(lambda values, batch: stage.loss(values, batch, KEY, 0)[0])
    noise = np.random.default_rng(5).random(batch["lq"].shape, np.float32)
    assert value(values, batch) == value(values, batch | {"lq": noise})
    assert value(values, batch) != value(values, batch | {"gt": noise})
    padding = values["text_encoder.token_embedding.weight"].copy()
    padding[1] += 1  # a token that the empty caption does not hold
    assert value(values, batch) == value(values | {"text_encoder.token_embedding.weight": padding}, batch)
    padding[0] += 1
    assert value(values, batch) != value(values | {"text_encoder.token_embedding.weight": padding}, batch)


@pytest.fixture(scope="module")
def adversarial():
    """The refinement against a discriminator that joins in after the first step."""
    return Training("drm", batch=tiny_batch(2, side=32), gan_weight=0.5, gan_start=1)


def test_the_discriminator_waits_and_then_learns(adversarial):
    run = adversarial
    judge = {path for path in run.state.trainable if path.startswith("discriminator.")}
    assert judge and run.state.trainable.keys() - judge == {p for p in run.values if p.startswith("drm.")}
    run.step()
    assert run.metrics["gan_weight"] == 0 and run.metrics["discriminator"] > 0
    assert run.moved() == {f"drm.{layer}.{leaf}" for layer in ("mask", "residual") for leaf in ("weight", "bias")}
    first = float(run.step().metrics["discriminator"])
    assert np.isfinite(run.metrics["gan_weight"]) and run.metrics["gan_weight"] > 0
    # The last bias shifts real and generated scores alike: inside the margins its gradients cancel.
    assert judge - run.moved() <= {"discriminator.last.bias"}
    run.step(6)
    assert run.metrics["discriminator"] < first and run.metrics["finite"] == 1
    assert run.state.trainable.keys() - run.moved() <= {"discriminator.last.bias"}


def test_adversaries_do_not_train_each_other(adversarial):
    """The generator's term gives the discriminator no gradient, nor the discriminator's the refinement."""
    run = adversarial
    start = run.start.trainable | {"drm.residual.bias": jnp.full(12, 0.1)}
    run.state = run.start._replace(step=jnp.int32(5), trainable=start)

    @jax.jit
    def discriminator_gradients(start):
        return jax.grad(lambda t: run.stage.loss(run.frozen | t, run.batch, key, 5)[1]["discriminator"])(start)

    key = jax.random.fold_in(jax.random.fold_in(KEY, 5), 0)  # as the step draws it
    own, total = discriminator_gradients(start), run.step().gradients()
    for path in total:
        if path.startswith("discriminator."):
            np.testing.assert_allclose(total[path], own[path], rtol=1e-3, atol=1e-6, err_msg=path)
        else:
            assert not np.any(own[path]), path
    assert np.any(total["discriminator.first.weight"]) and np.any(total["drm.residual.weight"])
    assert 0 < run.metrics["gan_weight"] < 0.5e4


@pytest.mark.skipif(not available(), reason="the package with the weights of LPIPS is not installed")
def test_the_perceptual_term_is_added_with_its_weight():
    run = Training("drm", batch=tiny_batch(2, side=32), lpips_weight=0.25, lpips_net="alex", drm_noise_std=0.0)
    weights = load_lpips("alex")
    assert {f"lpips.{key}" for key in weights} == run.frozen.keys() - parameters.declared(run.model).keys()
    structure, _ = parameters.split(run.model)
    gt = 2 * run.batch["gt"] - 1

    @jax.jit
    def both(values):
        model = parameters.merge(structure, {k: values[k] for k in parameters.declared(run.model)})
        out = model.decode(model.encode(gt)[0])
        return run.stage.loss(values, run.batch, KEY, 0), (jnp.abs(out - gt).mean(), lpips(weights, out, gt).mean())

    (total, terms), (l1, distance) = both(without_spread(run.values))
    np.testing.assert_allclose([terms["l1"], terms["lpips"]], [l1, distance], rtol=1e-4)
    np.testing.assert_allclose(total, l1 + 0.25 * distance, rtol=1e-4)
    assert distance > 0.01


def test_half_precision_computes_in_it_and_keeps_losses_and_gradients_in_float32(monkeypatch):
    model = MPerceiver(tiny_config())
    seen = []
    original = MPerceiver.predict

    def spy(self, x_t, t, condition, prompts=None):
        eps = original(self, x_t, t, condition, prompts)
        seen.extend(leaf.dtype for leaf in jax.tree.leaves((x_t, condition.z_lq, condition.context, eps)))
        return eps

    monkeypatch.setattr(MPerceiver, "predict", spy)
    stage = build_stage("dual_branch", tiny_experiment(dtype="bfloat16"), model)
    values = {
        path: jax.ShapeDtypeStruct(value.shape, jnp.float32 if stage.is_trained(path) else jnp.bfloat16)
        for path, value in parameters.split(model)[1].items()
    }
    trained = {path: value for path, value in values.items() if stage.is_trained(path)}
    value_and_grad = jax.value_and_grad(lambda t, v, b: stage.loss(v | t, b, KEY, 0)[0])
    value, gradients = jax.eval_shape(value_and_grad, trained, values, tiny_batch())
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert value.dtype == jnp.float32
    assert {gradient.dtype for gradient in gradients.values()} == {jnp.dtype(jnp.float32)}


def test_unknown_stages_are_named():
    with pytest.raises(ValueError, match=r"stages\.finetune: no such stage; the stages are vae, prior"):
        build_stage("finetune", tiny_experiment(), MPerceiver(tiny_config()))

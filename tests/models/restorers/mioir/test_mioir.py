"""MiOIR's networks against the release's names, shapes and figures; their prompts and sizes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.condition_weights import weights_of_labels
from mperceiver_jax.models.restorers.mioir import prompting
from mperceiver_jax.models.restorers.mioir.prompted_restormer import (
    PromptedPromptIR,
    PromptedPromptIRConfig,
    PromptedRestormer,
    PromptedRestormerConfig,
)
from mperceiver_jax.models.restorers.mioir.prompting import TASKS, Classifier
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNet, SRResNetConfig
from mperceiver_jax.models.restorers.mioir.swinir import SwinIR, SwinIRConfig
from mperceiver_jax.models.restorers.mioir.uformer import Uformer, UformerConfig
from mperceiver_jax.models.restorers.promptir import PromptIRConfig
from mperceiver_jax.models.restorers.restormer import RestormerConfig
from tests.support import closed_form
from tests.support.parity_fixtures import FOLDER

NETWORKS = {
    "SRResNet": (SRResNet, SRResNetConfig),
    "SwinIR": (SwinIR, SwinIRConfig),
    "Restormer": (PromptedRestormer, PromptedRestormerConfig),
    "Uformer": (Uformer, UformerConfig),
    "PromptIR": (PromptedPromptIR, PromptedPromptIRConfig),
}
KINDS = {"": "plain", "_EP": "explicit", "_AP": "adaptive"}
COUNTS = {
    "SRResNet": (1_222_147, 1_441_033, 1_447_305),
    "SwinIR": (11_604_775, 11_854_341, 11_860_613),
    "Restormer": (26_126_644, 26_547_578, 26_572_666),
    "Uformer": (50_880_946, 51_457_976, 51_489_336),
    "PromptIR": (35_376_967,),
}
RELEASED = [
    (name, suffix, count) for name, counts in COUNTS.items() for suffix, count in zip(KINDS, counts, strict=False)
]

SMALL_RESTORMER = {"dim": 8, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "heads": (1, 2, 2, 4)}
TINY = {
    "SRResNet": SRResNetConfig(width=8, blocks=2),
    "SwinIR": SwinIRConfig(width=12, heads=2, depths=(2,), window=4, tail=8),
    "Restormer": PromptedRestormerConfig(RestormerConfig(**SMALL_RESTORMER)),
    "Uformer": UformerConfig(width=8, head_width=4, depths=(1, 2, 1), window=4),
    "PromptIR": PromptedPromptIRConfig(
        PromptIRConfig(**SMALL_RESTORMER, prompt_widths=(8, 16, 32), prompt_sides=(8, 4, 2))
    ),
}


def built(name: str, kind: str = "plain"):
    cls, config = NETWORKS[name]
    return cls(config.release(kind))


def tiny(name: str, kind: str, **changes):
    return NETWORKS[name][0](replace(TINY[name], prompts=kind, **changes))


def restored(module, params, image, guide=None, method: str = "restore", **options):
    structure, _ = parameters.split(module)
    return jax.jit(lambda p: getattr(parameters.merge(structure, p), method)(image, guide, **options))(params)


@pytest.mark.parametrize(("name", "suffix", "count"), RELEASED)
def test_keys_shapes_and_counts_are_the_releases(name, suffix, count):
    module = built(name, KINDS[suffix])
    assert parameters.count(module) == count
    networks = json.loads((FOLDER / "state_keys" / "mioir.json").read_text())["networks"]
    listed = networks[f"MiOIR {name}{suffix}"]["state_dict"]
    assert closed_form.shapes(module) == {key: tuple(shape) for key, shape in listed}


FULL = [
    pytest.param(name, suffix, marks=() if name == "SRResNet" else pytest.mark.slow) for name, suffix, _ in RELEASED
]


@pytest.mark.parametrize(("name", "suffix"), FULL)
def test_figures_are_the_releases(name, suffix):
    module = built(name, KINDS[suffix])
    params = convert.from_torch(module, closed_form.state(f"MiOIR {name}{suffix}", "mioir"))
    image = closed_form.image()
    guide = {"": None, "_EP": closed_form.task_map(), "_AP": image}[suffix]
    found = restored(module, params, image, guide)
    if suffix == "_EP":
        closed_form.check(f"MiO {name}_EP cp", found, file="mioir_prompts")
    elif suffix == "_AP" and name in ("SwinIR", "Uformer"):
        closed_form.check(f"MiO {name}_AP", found, file="mioir_prompts")
    else:
        closed_form.check(f"MiO {name}{suffix}", found)


# What the tiny networks gave when the full ones had just been compared with the release: mean, deviation
# and two pixels. They watch over the slow comparison above.
PINNED = {
    "SwinIR": (0.272816, 0.816653, -0.018089, -1.182582),
    "Uformer": (0.328333, 0.752812, 0.610762, 1.429294),
    "Restormer": (0.878369, 1.371892, 1.849578, 2.681492),
    "PromptIR": (0.923937, 1.504738, 0.935538, 0.712043),
}


@pytest.mark.parametrize("name", PINNED)
def test_figures_have_not_changed(name):
    module = tiny(name, "adaptive")
    image = closed_form.image()[:, :13, :22]
    found = np.asarray(restored(module, closed_form.values(module), image, method="__call__"), np.float64)
    figures = (found.mean(), found.std(), found[0, 0, 0, 0], found[0, -1, -1, 2])
    np.testing.assert_allclose(figures, PINNED[name], atol=1e-4)


# Gradients of the two on Restormer's U-shape, with everything but these prompts, are tested where it is.
@pytest.mark.parametrize("name", ["SRResNet", "SwinIR", "Uformer"])
def test_any_size_goes_and_every_parameter_learns(name):
    shorter = {"depths": (1, 1, 1)} if name == "Uformer" else {}
    module = parameters.initialise(tiny(name, "explicit", **shorter))
    structure, params = parameters.split(module)
    image = np.random.default_rng(0).random((2, 21, 13, 3), np.float32)
    tasks = weights_of_labels(np.array([0, 3]), len(TASKS))

    def loss(params):
        found = parameters.merge(structure, params)(image, tasks)
        return (found**2).mean(), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert found.shape == image.shape
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []


def test_the_task_picks_the_map_and_the_map_matters():
    module = parameters.initialise(tiny("SRResNet", "explicit"))
    image = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    run = jax.jit(lambda tasks: module(image, tasks))
    rain, haze = (run(weights_of_labels(np.array([TASKS.index(name)]), len(TASKS))) for name in ("rain", "haze"))
    guide = prompting.task_maps()[None, TASKS.index("rain"), ..., None]
    np.testing.assert_allclose(rain, jax.jit(module.restore)(image, guide), atol=1e-6)
    assert np.abs(rain - haze).max() > 1e-4
    with pytest.raises(ValueError, match=r"needs `tasks`: \(batch, 7\)"):
        module(image)


def test_adaptive_prompts_look_at_the_padded_image():
    module = parameters.initialise(tiny("SwinIR", "adaptive"))
    image = np.random.default_rng(0).random((1, 9, 14, 3), np.float32)
    padded = np.pad(image, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="reflect")
    params = parameters.split(module)[1]
    wanted = restored(module, params, padded, padded)[:, :9, :14]
    np.testing.assert_allclose(restored(module, params, image, method="__call__"), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (4, 9)])
def test_adaptive_prompts_of_images_smaller_than_a_kernel_are_numbers(size):
    module = parameters.initialise(tiny("SRResNet", "adaptive"))
    image = np.random.default_rng(0).random((1, *size, 3), np.float32)
    assert np.isfinite(module(image)).all()


def test_uformer_pads_to_squares_where_it_shall():
    image = np.arange(5.0 * 17).reshape(1, 5, 17, 1).repeat(3, -1)
    assert tiny("Uformer", "plain").padded(image).shape == (1, 8, 24, 3)
    found = tiny("Uformer", "plain", square=True).padded(image)
    assert found.shape == (1, 24, 24, 3)
    np.testing.assert_array_equal(found[0, 8:16], found[0, 7::-1])
    np.testing.assert_array_equal(found[0, :5, 17:], image[0, :, 15:8:-1])


def test_uformer_as_released_restores_images_as_squares():
    """An image of any shape is, first, reflected to a multiple of the windows, then to a square."""
    assert all(UformerConfig.release(kind).square for kind in KINDS.values())
    sizes = replace(TINY["Uformer"], square=UformerConfig.release().square, prompts="adaptive")
    module = parameters.initialise(Uformer(sizes))
    image = np.random.default_rng(0).random((1, 8, 15, 3), np.float32)
    wide = np.pad(image, ((0, 0), (0, 0), (0, 1), (0, 0)), mode="reflect")
    square = np.pad(wide, ((0, 0), (0, 8), (0, 0), (0, 0)), mode="symmetric")
    found = np.asarray(jax.jit(module)(image))
    np.testing.assert_allclose(found, jax.jit(module)(square)[:, :8, :15], atol=1e-6)
    assert found.shape == image.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_computes_in_the_dtype_of_its_image(name):
    module = tiny(name, "explicit")
    structure, params = parameters.split(module)
    image = jax.ShapeDtypeStruct((2, 13, 9, 3), jnp.bfloat16)
    tasks = jax.ShapeDtypeStruct((2, 7), jnp.float32)
    found = jax.eval_shape(lambda p, x, t: parameters.merge(structure, p)(x, t), params, image, tasks)
    assert (found.shape, found.dtype) == (image.shape, image.dtype)


def test_stochastic_depth_needs_a_key_and_is_random():
    module = parameters.initialise(tiny("Uformer", "plain", drop_path=0.9))
    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    run = jax.jit(lambda key: module(image, key=key))
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(one - other).max() > 1e-6
    np.testing.assert_array_equal(one, run(jax.random.key(0)))


def test_buffers_come_back_as_they_were_read_or_as_they_should_be():
    module = parameters.initialise(tiny("SwinIR", "plain"))
    state = convert.dump(module)
    index, mask = ("layers.0.residual_group.blocks.1." + name for name in ("attn.relative_position_index", "attn_mask"))
    assert state[index].dtype == np.int64 and state[index].shape == (16, 16)
    assert state[mask].shape == (32 * 32, 16, 16)
    changed = state | {mask: state[mask] * 2}
    again = convert.dump(convert.load(tiny("SwinIR", "plain"), changed))
    assert set(again) == set(state)
    assert all(np.array_equal(again[key], changed[key]) for key in changed)
    without = {key: value for key, value in state.items() if key not in (index, mask)}
    refilled = convert.dump(convert.load(tiny("SwinIR", "plain"), without))
    assert np.array_equal(refilled[mask], state[mask]) and np.array_equal(refilled[index], state[index])
    with pytest.raises(ValueError, match=r"blocks\.1\.attn_mask: \(4, 16, 16\) given, \(1024, 16, 16\) expected"):
        convert.load(module, state | {mask: state[mask][:4]})


def test_classifier():
    module = Classifier()
    assert parameters.count(module) == 188_551
    assert closed_form.shapes(module) == closed_form.state_keys("MiOIR Classifier", "mioir")
    convert.load(module, closed_form.state("MiOIR Classifier", "mioir"))
    wanted = json.loads((FOLDER / "other_systems.json").read_text())["MiO Classifier"]["vals"]
    found = jax.nn.softmax(jax.jit(module.__call__)(closed_form.image()), -1)
    np.testing.assert_allclose(found, [wanted], atol=1e-6)
    small = closed_form.image()[:, :4, :20]
    extended = np.pad(small, ((0, 0), (0, 5), (0, 0), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(module(small), module(extended))


def test_starting_values_are_the_releases():
    plain, prompted = SRResNet(SRResNetConfig()), SRResNet(SRResNetConfig(prompts="explicit"))
    of = lambda module, path: np.asarray(
        parameters.initial_value(path, parameters.declared(module)[path], seed=0), np.float64
    )
    kaiming = 0.1 * (2 / (9 * 64)) ** 0.5
    assert of(plain, "conv_hr.weight").std() == pytest.approx(kaiming, rel=0.05)
    assert of(prompted, "body1.0.conv2.weight").std() == pytest.approx(kaiming, rel=0.05)
    assert not of(plain, "conv_hr.bias").any() and not of(prompted, "body1.0.conv2.bias").any()
    assert of(prompted, "conv_hr.weight").std() == pytest.approx((9 * 64) ** -0.5 / 3**0.5, rel=0.05)
    swinir = SwinIR(SwinIRConfig(prompts="explicit"))
    for path in ("layers.0.residual_group.blocks.0.mlp.fc1.weight", "layers.0.prompt_scale.weight"):
        assert of(swinir, path).std() == pytest.approx(0.02, rel=0.05)
    assert not of(swinir, "layers.0.prompt_scale.bias").any()
    assert of(Uformer(UformerConfig()), "decoderlayer_0.blocks.0.modulator.weight").std() == pytest.approx(1, rel=0.05)


@pytest.mark.usefixtures("unchecked_shapes")
def test_task_maps_from_a_file(tmp_path):
    maps = np.random.default_rng(0).random((7, 5, 4))
    np.save(tmp_path / "type7.npy", maps)
    found = prompting.task_maps(str(tmp_path / "type7.npy"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, maps, atol=1e-7)
    assert prompting.task_maps().shape == (7, 128, 128)
    with pytest.raises(FileNotFoundError, match=r"other\.npy: no such file of task maps"):
        prompting.task_maps(str(tmp_path / "other.npy"))
    np.save(tmp_path / "wrong.npy", maps[:6])
    with pytest.raises(ValueError, match=r"\(6, 5, 4\) found, floats \(7, height, width\) expected"):
        prompting.task_maps(str(tmp_path / "wrong.npy"))
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"no \.npy file of task maps"):
        prompting.task_maps(str(tmp_path / "text.npy"))


@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_configurations_are_named():
    with pytest.raises(ValueError, match="'both' given"):
        SRResNet(SRResNetConfig(prompts="both"))
    with pytest.raises(ValueError, match=r"heads: 20 \(width\) is no multiple of 3"):
        SwinIR(SwinIRConfig(width=20, heads=3))
    with pytest.raises(ValueError, match="odd number"):
        Uformer(UformerConfig(depths=(1, 1)))
    with pytest.raises(ValueError, match=r"head_width: 8 \(width\) is no multiple of 6"):
        Uformer(UformerConfig(width=8, head_width=6))


@pytest.mark.parametrize("name", NETWORKS)
def test_small_configurations_are_small(name):
    cls, config = NETWORKS[name]
    assert parameters.count(cls(config.small("adaptive"))) < 2_500_000

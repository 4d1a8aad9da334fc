"""State dicts of PromptIR, AM-PromptIR and Restormer: strict, complete, and told by their keys."""

import numpy as np
import pytest

from mperceiver_jax import convert
from mperceiver_jax.convert.keymaps.promptir import recognise
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.am_promptir import AMPromptIR, AMPromptIRConfig
from mperceiver_jax.models.restorers.promptir import PromptIR, PromptIRConfig
from mperceiver_jax.models.restorers.restormer import Restormer, RestormerConfig
from tests.models.restorers.test_am_promptir import TINY as TINY_AM
from tests.support import closed_form


class Shaped:
    """A tensor of which only the shape is known."""

    def __init__(self, shape):
        self.shape = shape


FILES = [
    ("PromptIR", "promptir", PromptIR(PromptIRConfig.full()), "release", 548, 35_592_263),
    ("AM-PromptIR", "am_promptir", AMPromptIR(AMPromptIRConfig.release()), "release", 1040, 64_823_311),
    ("MiOIR Restormer", "mioir", Restormer(RestormerConfig.full()), "release", 494, 26_126_644),
    ("MiOIR PromptIR", "mioir", PromptIR(PromptIRConfig.full()), "mioir", 542, 35_376_967),
]


@pytest.mark.parametrize(("network", "file", "module", "layout", "tensors", "size"), FILES)
def test_keys_and_shapes_are_the_releases(network, file, module, layout, tensors, size):
    wanted = closed_form.state_keys(network, file)
    assert (len(wanted), sum(int(np.prod(shape)) for shape in wanted.values())) == (tensors, size)
    names = keymap(module, layout)
    found = dict(names.dead)
    for path, variable in parameters.declared(module).items():
        shape = variable.get_value().shape
        if variable.kind == "conv":
            shape = (shape[3], shape[2], *shape[:2])
        found[names.key(path)] = shape[::-1] if variable.kind == "linear" else shape
    assert found == wanted

    recognised = recognise({key: Shaped(shape) for key, shape in wanted.items()})
    assert recognised is not None
    assert (type(recognised[0]), recognised[0].config, recognised[1]) == (type(module), module.config, layout)


@pytest.fixture(scope="module")
def tiny():
    """A network as the release has it but for its size, and its state dict with dead tensors."""
    config = AMPromptIRConfig(**{**vars(TINY_AM), "text_path": "release"})
    net = parameters.initialise(AMPromptIR(config))
    rng = np.random.default_rng(0)
    state = convert.dump(net)
    dead = keymap(net, "release").dead
    return config, dead, {k: rng.random(v.shape, np.float32) if k in dead else v for k, v in state.items()}


def test_dead_tensors_are_kept_aside_and_written_back(tiny):
    config, dead, state = tiny
    net = convert.load(AMPromptIR(config), state)
    assert not set(dead) & set(parameters.declared(net))
    back = convert.dump(net)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)
    # The same with parameters as a flat dict.
    values, aside = convert.from_torch(net, state), convert.dead_tensors(net, state)
    back = convert.to_torch(net, values, dead=aside)
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_without_dead_tensors_zeros_stand_for_them(tiny):
    config, dead, state = tiny
    live = {key: value for key, value in state.items() if key not in dead}
    back = convert.dump(convert.load(AMPromptIR(config), live))
    assert back.keys() == state.keys()
    for key, value in back.items():
        assert back[key].shape == state[key].shape
        assert np.array_equal(value, live[key]) if key in live else not value.any()


def test_dead_tensors_are_there_as_declared_or_not_at_all(tiny):
    config, dead, state = tiny
    first, *_ = dead
    with pytest.raises(ValueError, match=f"1 missing: {first}"):
        convert.load(AMPromptIR(config), {key: value for key, value in state.items() if key != first})
    with pytest.raises(ValueError, match=rf"1 of another shape: {first}: \(1,\) given"):
        convert.load(AMPromptIR(config), state | {first: np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=f"^{first}: holds values that are not finite"):
        convert.load(AMPromptIR(config), state | {first: state[first] * np.nan})
    with pytest.raises(ValueError, match=r"1 unexpected: latent\.0\.attn\.conv9\.weight"):
        convert.load(AMPromptIR(config), state | {"latent.0.attn.conv9.weight": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    "module",
    [
        Restormer(RestormerConfig.small()),
        Restormer(RestormerConfig(norm="bias_free")),
        PromptIR(PromptIRConfig.small()),
        AMPromptIR(AMPromptIRConfig.small()),
    ],
    ids=["Restormer", "bias-free Restormer", "PromptIR", "AM-PromptIR"],
)
def test_sizes_are_read_from_the_tensors(module):
    shapes = {}
    for path, variable in parameters.declared(module).items():
        shape = variable.get_value().shape
        if variable.kind == "conv":
            shape = (shape[3], shape[2], *shape[:2])
        shapes[path] = Shaped(shape[::-1] if variable.kind == "linear" else shape)
    found, _ = recognise(shapes)
    assert (type(found), found.config) == (type(module), module.config)


def test_other_state_dicts_are_not_ours():
    assert recognise({"conv_in.weight": Shaped((4, 3, 3, 3))}) is None
    assert recognise({key: Shaped(shape) for key, shape in closed_form.state_keys("PIP", "pip").items()}) is None

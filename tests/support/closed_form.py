"""The restorers' parity fixtures: weights and inputs from a closed form, a few outputs of the released modules.

`tests/data/parity/other_systems.json` holds mean, population standard deviation, largest
magnitude and listed pixels of each output; `mioir_prompts.json` more of them, with five decimals.
"""

import json
from functools import cache

import numpy as np
from flax import nnx

from mperceiver_jax import convert
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.convert.state_dicts import theirs
from mperceiver_jax.models import parameters
from tests.support.parity_fixtures import FOLDER, nchw, nhwc


def sequence(count: int, seed: int) -> np.ndarray:
    """2 frac(43758.5453 sin(12.9898 i + 78.233 seed)) - 1 for i < count, float64."""
    z = 43758.5453 * np.sin(12.9898 * np.arange(count, dtype=np.float64) + 78.233 * seed)
    return 2 * (z - np.floor(z)) - 1


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The fixtures' value of a PyTorch parameter."""
    v = sequence(int(np.prod(shape)), sum(key.encode("ascii")) % 1000).reshape(shape)
    last = key.rsplit(".", 1)[-1]
    if last in ("temperature", "para1", "para2"):
        value = 1 + 0.1 * v
    elif last in ("attn1", "attn2", "attn3", "attn4"):
        value = 0.2 + 0.05 * v
    elif last in ("prompt_param", "low_prompt_param", "detask_prompt_param"):
        value = 0.5 + 0.5 * v
    elif last == "relative_position_bias_table" or "modulator" in key or (last == "bias" and len(shape) == 1):
        value = 0.1 * v
    elif len(shape) == 1:
        value = 1 + 0.1 * v
    else:
        value = v * np.sqrt(3 / np.prod(shape[1:]))
    return value.astype(np.float32)


def image(batch: int = 1) -> np.ndarray:
    """The fixtures' input in our layout: (1, 128, 128, 3), or (2, 128, 128, 3)."""
    seed = {1: 12345, 2: 54321}[batch]
    flat = (sequence(batch * 3 * 128 * 128, seed) + 1) / 2
    return nhwc(flat.reshape(batch, 3, 128, 128)).astype(np.float32)


@cache
def state_keys(network: str, file: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a released network, buffers left out; `file` is a stem in `tests/data/parity/state_keys`."""
    facts = json.loads((FOLDER / "state_keys" / f"{file}.json").read_text())["networks"][network]
    return {key: tuple(shape) for key, shape in facts["state_dict"] if key not in facts["buffers"]}


def state(network: str, file: str) -> dict[str, np.ndarray]:
    """All tensors of a released network, as the fixtures have them."""
    return {key: weight(key, shape) for key, shape in state_keys(network, file).items()}


def task_map() -> np.ndarray:
    """The fixtures' guide for explicit prompts, (1, 128, 128, 1)."""
    return ((sequence(128 * 128, 777) + 1) / 2).reshape(1, 128, 128, 1).astype(np.float32)


def shapes(module: nnx.Module, layout: str = "release") -> dict[str, tuple[int, ...]]:
    """{key: shape} of what `convert.dump` gives for a module, without any values."""
    names, found = keymap(module, layout), {}
    for path, variable in parameters.declared(module).items():
        nothing = np.broadcast_to(np.float32(0), variable.get_value().shape)
        found |= {key: part.shape for key, part in theirs(names, path, variable.kind, nothing).items()}
    return found | dict(names.dead) | {key: value.shape for key, value in names.buffers.items()}


def values(module: nnx.Module, layout: str = "release") -> dict[str, np.ndarray]:
    """{path: value} of a module of any size, by the closed form of its PyTorch keys."""
    buffers = keymap(module, layout).buffers
    tensors = {key: weight(key, shape) for key, shape in shapes(module, layout).items() if key not in buffers}
    return convert.from_torch(module, tensors, layout)


def check(name: str, output, tolerance: float = 1e-4, file: str = "other_systems") -> None:
    """Asserts that an NHWC output has the figures of a fixture. `tolerance` is absolute."""
    facts = json.loads((FOLDER / f"{file}.json").read_text())[name]
    found = nchw(np.asarray(output, np.float64))
    assert list(found.shape) == facts["shape"]
    wanted = {"mean": found.mean(), "std": found.std(), "absmax": np.abs(found).max()}
    worst = max(abs(facts[figure] - value) for figure, value in wanted.items())
    for item, listed in enumerate(("px", "px_b1")):
        for place, value in facts.get(listed, ()):
            worst = max(worst, abs(found[(item, *place)] - value))
    assert worst <= tolerance, f"{name}: off by {worst:.3g}, tolerance {tolerance:.3g}"

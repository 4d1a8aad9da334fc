"""The parity fixtures in `tests/data/parity`: weights, inputs and outputs of the original PyTorch modules.

`in.*` and `out.*` are NCHW. Weights are stored under `state.*`, or made from a seed by
the recipe that the fixture's description states.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).parents[1] / "data" / "parity"


@dataclass(frozen=True)
class Fixture:
    """One fixture: `description`, `state` (PyTorch keys), `inputs` and `outputs` by name."""

    description: dict
    state: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def substate(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors whose key starts with `prefix`, without it."""
        return {key[len(prefix) :]: value for key, value in self.state.items() if key.startswith(prefix)}

    def check(self, name: str, value) -> None:
        """Asserts that `value` (our layout: channels last for maps) equals `outputs[name]` to the stated tolerance."""
        expected = self.outputs[name]
        value = np.asarray(value)
        if expected.ndim == 4 and value.shape != expected.shape:
            value = nchw(value)
        assert value.shape == expected.shape, (name, value.shape, expected.shape)
        tolerance = self.description["tolerance"]["per_output"][f"out.{name}"]["recommended_max_abs_diff"]
        worst = float(np.abs(value.astype(np.float64) - expected).max())
        assert worst <= tolerance, f"{name}: off by {worst:.3g}, tolerance {tolerance:.3g}"


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def fixture(stem: str) -> Fixture:
    description = json.loads((FOLDER / f"{stem}.json").read_text())
    tensors = load_file(FOLDER / f"{stem}.safetensors")
    part = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    facts = description.get("state", {})
    state = part("state.") if facts.get("stored_in_file", True) else _from_seed(facts)
    return Fixture(description, state, part("in."), part("out."))


def _from_seed(facts: dict) -> dict[str, np.ndarray]:
    state, digest = {}, hashlib.sha256()
    for index, (key, shape, offset, scale) in enumerate(facts["list"]):
        n = np.random.default_rng([facts["seed"], index]).standard_normal(shape, np.float32)
        state[key] = np.asarray(np.float32(scale) * n + np.float32(offset), np.float32)
        digest.update(state[key].astype("<f4").tobytes())
    assert digest.hexdigest() == facts["sha256"], "the recipe did not reproduce the fixture's weights"
    return state

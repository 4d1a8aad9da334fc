"""Parameters: how modules declare them, and how everything else handles them.

A module is built *abstractly*: constructing one costs nothing, at any size, because
each parameter holds only its shape, its initial distribution and how PyTorch lays the
same tensor out. Values come afterwards, leaf by leaf, from a checkpoint
(`convert.load`) or from `initial_values`, so that nothing large ever sits on one
device. Outside `models/`, parameters are a flat dict from dotted path to array
(`{'unet.conv_in.weight': ...}`); `split` and `merge` go between the two forms.
"""

import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Kind = Literal["conv", "linear", "plain"]
Params = dict[str, Any]


@dataclass(frozen=True)
class Init:
    """The distribution a parameter starts from.

    `uniform` draws from [-scale, scale), `positive` from [0, scale), `normal` has standard deviation
    `scale`, `constant` is `scale` everywhere, `second_half` is zero but `scale` in the second half of the last axis,
    `cosines` is `whitening_cosines` times `scale`.
    """

    distribution: Literal["uniform", "positive", "normal", "constant", "second_half", "cosines"]
    scale: float

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if self.distribution == "constant":
            return np.full(shape, self.scale, np.float32)
        if self.distribution == "second_half":
            value = np.zeros(shape, np.float32)
            value[..., shape[-1] // 2 :] = self.scale
            return value
        if self.distribution == "cosines":
            return np.float32(self.scale) * whitening_cosines(shape, rng)
        if self.distribution == "positive":
            return rng.random(shape, np.float32) * np.float32(self.scale)
        if self.distribution == "uniform":
            return (rng.random(shape, np.float32) * 2 - 1) * np.float32(self.scale)
        return rng.standard_normal(shape, np.float32) * np.float32(self.scale)


ZEROS = Init("constant", 0.0)
ONES = Init("constant", 1.0)


def whitening_cosines(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Kernels (side, side, 3, features) whose outputs on image patches are nearly uncorrelated and of one variance.

    Two-dimensional cosines on brightness and two colour differences, lowest frequencies first, each
    stronger the higher its frequency, as the spectrum of images falls. A patch embedding with
    random initial values responds to little but a patch's mean, and needs many updates before it distinguishes
    noise from blur. Features beyond the basis get PyTorch's default. Our own choice.
    """
    side, _, channels, features = shape
    if channels != 3:
        raise ValueError(f"whitening_cosines: three colour channels are expected, not {channels}")
    k = np.arange(side)
    cosines = np.cos(np.pi * (2 * k + 1) * k[:, None] / (2 * side)) * np.sqrt(2 / side)
    cosines[0] /= np.sqrt(2)
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    # Colour differences vary less and more slowly than brightness.
    basis = [(math.hypot(u, v), u, v, c) for u in k for v in k for c in range(3)]
    basis.sort(key=lambda item: item[0] if item[3] == 0 else 2 * item[0] + 1)
    kernels = Init("uniform", (side * side * channels) ** -0.5).draw(shape, rng)
    for feature, (frequency, u, v, c) in enumerate(basis[:features]):
        gain = (0.5 + frequency) / side * (1 if c == 0 else 3)
        kernels[..., feature] = gain * np.multiply.outer(np.outer(cosines[u], cosines[v]), colours[c])
    return kernels


def normal(std: float) -> Init:
    return Init("normal", std)


def fan_in_uniform(fan_in: int) -> Init:
    """PyTorch's default for weights and biases of convolutions and linears."""
    return Init("uniform", fan_in**-0.5)


def parameter(shape: tuple[int, ...], init: Init, kind: Kind = "plain") -> nnx.Param:
    """Declares a float32 parameter.

    Args:
        shape: our layout: (height, width, in / groups, out) for `kind='conv'`, (in, out)
            for `kind='linear'`, the same as PyTorch's for `kind='plain'`.
        init: where its value starts.
        kind: which transposition stands between PyTorch's layout and ours.
    """
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), init=init, kind=kind)


def declared(module: nnx.Module) -> dict[str, nnx.Param]:
    """The module's parameters as declared, by dotted path, in a fixed order."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): variable for path, variable in sorted(flat, key=lambda item: str(item[0]))}


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """(structure, {path: array or ShapeDtypeStruct})."""
    structure, _ = nnx.split(module)
    return structure, {path: variable.get_value() for path, variable in declared(module).items()}


def merge(structure: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The module of `split` with these parameters; paths must be exactly the module's own."""
    state = nnx.from_flat_state({_path(key): nnx.Param(value) for key, value in params.items()}.items())
    return nnx.merge(structure, state)


def assign(module: nnx.Module, values: Mapping[str, Any]) -> None:
    """Puts values into a module in place, for eager use. Paths and shapes must fit.

    Raises:
        ValueError: names the paths that are unknown, and those whose shape differs.
    """
    variables = _variables(module)
    unknown = sorted(set(values) - set(variables))
    if unknown:
        raise ValueError(f"{type(module).__name__} has no parameters {unknown[:10]} ({len(unknown)} in all)")
    for path, value in values.items():
        expected = tuple(variables[path].get_value().shape)
        if tuple(value.shape) != expected:
            raise ValueError(f"{path}: shape {tuple(value.shape)} given, {expected} expected")
        variables[path].set_value(value)


def initial_values(
    module: nnx.Module,
    seed: int,
    place: Callable[[str, np.ndarray], Any] = lambda path, value: jnp.asarray(value),
    given: Mapping[str, Any] | None = None,
) -> Params:
    """Initial values of every parameter, made and placed one leaf at a time.

    Each leaf has its own generator, seeded by (seed, path), so a value depends neither
    on the mesh nor on which other modules exist.

    Args:
        place: puts a float32 numpy array where it belongs (a sharding, a dtype).
        given: values that take the place of initial ones, as they are.
    """
    values, given = {}, given or {}
    for path, variable in declared(module).items():
        values[path] = given[path] if path in given else place(path, initial_value(path, variable, seed))
    return values


def initial_value(path: str, variable: nnx.Param, seed: int) -> np.ndarray:
    """The float32 value that one declared parameter starts from, see `initial_values`."""
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return variable.init.draw(tuple(variable.get_value().shape), rng)


def variance_preserving_init(module: nnx.Module, zero: str, keep: str = "(?!)") -> None:
    """Changes where the weights of a deep network start, for training it from nothing.

    Convolutions and linears keep the variance of their input (PyTorch's default divides it by
    three, layer after layer), and those whose path matches `zero` start at zero: with the last
    layer of every residual branch among them, the network starts out nearly linear. What matches
    `keep` stays as declared. For networks that are loaded this changes nothing.
    """
    for path, variable in _variables(module).items():
        if variable.kind == "plain" or re.search(keep, path):
            continue
        init = ZEROS if re.search(zero, path) else replace(variable.init, scale=variable.init.scale * 3**0.5)
        variable.set_metadata(init=init)


def start_weights(module: nnx.Module, kind: Kind, init: Callable[[tuple[int, ...]], Init]) -> None:
    """Changes where the weights of one kind start: at `init(shape)` each, with their biases at zero."""
    variables = _variables(module)
    for path, variable in variables.items():
        if variable.kind == kind and path.endswith("weight"):
            variable.set_metadata(init=init(tuple(variable.get_value().shape)))
            bias = path.removesuffix("weight") + "bias"
            if bias in variables:
                variables[bias].set_metadata(init=ZEROS)


def start_at_zero(module: nnx.Module, paths: Collection[str]) -> None:
    """Changes where these parameters start."""
    for path, variable in _variables(module).items():
        if path in paths:
            variable.set_metadata(init=ZEROS)


def initialise(module: nnx.Module, seed: int = 0) -> nnx.Module:
    """Fills a module with initial values in place, for eager use; returns it."""
    assign(module, initial_values(module, seed))
    return module


def count(module: nnx.Module) -> int:
    """Number of parameters."""
    return sum(int(np.prod(variable.get_value().shape)) for variable in declared(module).values())


def _path(key: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _variables(module: nnx.Module) -> dict[str, nnx.Param]:
    found = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            found[".".join(map(str, path))] = node
    return found

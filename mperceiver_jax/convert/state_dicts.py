"""Between a module's parameters and a PyTorch state dict: names, transpositions, strictness."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from mperceiver_jax.convert.keymaps import keymap
from mperceiver_jax.models import parameters


def from_torch(module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release") -> dict[str, Any]:
    """Translates a state dict into `{path: array}` for exactly the module's parameters.

    Args:
        module: gives the parameters to find; it is not changed.
        tensors: PyTorch names and shapes (conv OIHW, linear (out, in)).
        layout: the family of names: `release`, `diffusers`, `open_clip`, ... as `keymaps` knows them.

    Raises:
        ValueError: names every missing, unexpected and misshapen key.
    """
    names = keymap(module, layout)
    values, missing, misshapen, used = {}, [], [], set()
    for path, variable in parameters.declared(module).items():
        key = names.key(path)
        if key not in tensors:
            missing.append(key)
            continue
        used.add(key)
        value = _ours(np.asarray(tensors[key]), variable.kind)
        expected = tuple(variable.get_value().shape)
        if value.shape == expected:
            values[path] = value
        else:
            theirs = tuple(_theirs(np.empty(expected, np.bool_), variable.kind, names.trailing_axes(path)).shape)
            misshapen.append(f"{key}: {tuple(tensors[key].shape)} given, {theirs} expected")
    unexpected = [key for key in tensors if key not in used and not names.ignored(key)]
    problems = [
        f"{len(found)} {what}: " + "; ".join(sorted(found)[:20]) + (" ..." if len(found) > 20 else "")
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if found
    ]
    if problems:
        raise ValueError(f"The tensors are no {type(module).__name__} in layout {layout!r}. " + " | ".join(problems))
    return values


def to_torch(module: nnx.Module, values: Mapping[str, Any], layout: str = "release") -> dict[str, np.ndarray]:
    """Translates `{path: array}` into a state dict; the exact inverse of `from_torch`."""
    names = keymap(module, layout)
    variables = parameters.declared(module)
    absent = sorted(set(variables) - set(values))
    if absent:
        raise ValueError(f"{type(module).__name__}: no value for {absent[:10]} ({len(absent)} in all)")
    return {
        names.key(path): _theirs(np.asarray(values[path]), variable.kind, names.trailing_axes(path))
        for path, variable in variables.items()
    }


def load(module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release") -> nnx.Module:
    """Fills a module in place from a state dict (see `from_torch`) and returns it."""
    parameters.assign(module, {k: np.ascontiguousarray(v) for k, v in from_torch(module, tensors, layout).items()})
    return module


def dump(module: nnx.Module, layout: str = "release") -> dict[str, np.ndarray]:
    """The state dict of a filled module; the exact inverse of `load`."""
    return to_torch(module, parameters.split(module)[1], layout)


def _ours(tensor: np.ndarray, kind: parameters.Kind) -> np.ndarray:
    """PyTorch's array in our layout. 1x1 convolutions that we hold as linears lose their size-1 axes."""
    if kind == "conv" and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if kind == "linear" and tensor.ndim > 1:
        while tensor.ndim > 2 and tensor.shape[-1] == 1:
            tensor = tensor[..., 0]
        return tensor.T if tensor.ndim == 2 else tensor
    return tensor


def _theirs(value: np.ndarray, kind: parameters.Kind, trailing_axes: int) -> np.ndarray:
    """Our array as PyTorch stores it, with `trailing_axes` size-1 axes behind a linear's weight."""
    if kind == "conv":
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    if kind == "linear":
        return np.ascontiguousarray(value.T).reshape(value.T.shape + (1,) * trailing_axes)
    return value

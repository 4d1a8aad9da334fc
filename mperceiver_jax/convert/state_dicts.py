"""Between a module's parameters and a PyTorch state dict: names, transpositions, strictness."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from mperceiver_jax.convert.keymaps import AssemblyMap, KeyMap
from mperceiver_jax.convert.layouts import keymap
from mperceiver_jax.models import parameters


def from_torch(
    module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release", optional: str = "(?!)"
) -> dict[str, np.ndarray]:
    """Translates a state dict into `{path: array}` for exactly the module's parameters.

    Args:
        module: gives the parameters to find; it is not changed.
        tensors: PyTorch names and shapes (conv OIHW, linear (out, in)).
        layout: the family of names: `release`, `diffusers`, `open_clip`, ... as `layouts` lists them.
        optional: regular expression of *our* paths that may be absent, each by itself; the result then
            lacks them. By default none may. One parameter is never half there: of a stack that the
            family stores in parts, all parts are given or none.

    Raises:
        ValueError: names every missing, unexpected and misshapen key.
    """
    names = keymap(module, layout)
    tensors = _canonical(tensors, names)
    values: dict[str, np.ndarray] = {}
    used: set[str] = set()
    missing, misshapen = [], []
    for path, variable in parameters.declared(module).items():
        keys, kind, shape = names.keys(path), names.kind(path, variable.kind), variable.get_value().shape
        used.update(keys)
        if re.match(optional, path) and not any(key in tensors for key in keys):
            continue
        expected = (*shape[:-1], shape[-1] // len(keys)) if len(keys) > 1 else tuple(shape)
        parts = []
        for key in keys:
            if key not in tensors:
                missing.append(key)
                continue
            parts.append(_ours(np.asarray(tensors[key]), kind))
            if parts[-1].shape != expected:
                theirs = _theirs(np.broadcast_to(np.False_, expected), kind, names.trailing_axes(path)).shape
                misshapen.append(f"{key}: {tuple(tensors[key].shape)} given, {tuple(theirs)} expected")
        if not missing and not misshapen:
            values[path] = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
    unexpected = [key for key in tensors if key not in used and not names.ignored(key)]
    problems = [
        f"{len(found)} {what}: " + "; ".join(sorted(found)[:20]) + (" ..." if len(found) > 20 else "")
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if found
    ]
    if problems:
        name = type(module).__name__
        raise ValueError(f"The tensors are no {name} in layout {layout!r}. " + " | ".join(problems))
    return values


def to_torch(module: nnx.Module, values: Mapping[str, Any], layout: str = "release") -> dict[str, np.ndarray]:
    """Translates `{path: array}` into a state dict; the exact inverse of `from_torch`."""
    names = keymap(module, layout)
    variables = parameters.declared(module)
    absent = sorted(set(variables) - set(values))
    if absent:
        raise ValueError(f"{type(module).__name__}: no value for {absent[:10]} ({len(absent)} in all)")
    tensors = {}
    for path, variable in variables.items():
        for key, tensor in theirs(names, path, variable.kind, np.asarray(values[path])).items():
            tensors[key] = np.asarray(tensor, order="C")
    return tensors


def theirs(
    names: KeyMap | AssemblyMap, path: str, declared: parameters.Kind, value: np.ndarray
) -> dict[str, np.ndarray]:
    """The tensors, as views, that hold one parameter in a family of names: one, or the parts of a stack."""
    keys, kind = names.keys(path), names.kind(path, declared)
    parts = [value] if len(keys) == 1 else np.split(value, len(keys), -1)
    axes = names.trailing_axes(path)
    return {key: _theirs(part, kind, axes) for key, part in zip(keys, parts, strict=True)}


def load(module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release") -> nnx.Module:
    """Fills a module in place from a state dict (see `from_torch`) and returns it."""
    values = from_torch(module, tensors, layout)
    parameters.assign(module, {path: np.asarray(value, order="C") for path, value in values.items()})
    return module


def dump(module: nnx.Module, layout: str = "release") -> dict[str, np.ndarray]:
    """The state dict of a filled module; the exact inverse of `load`."""
    return to_torch(module, parameters.split(module)[1], layout)


def _canonical(tensors: Mapping[str, np.ndarray], names: KeyMap | AssemblyMap) -> dict[str, np.ndarray]:
    """The tensors under the spelling that the key map produces."""
    renamed: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        spelling = names.canonical(key)
        if spelling in renamed:
            raise ValueError(f"{key} and another key both mean {spelling}")
        renamed[spelling] = tensor
    return renamed


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
        return value.transpose(3, 2, 0, 1)
    if kind == "linear":
        return value.T[(...,) + (None,) * trailing_axes]
    return value

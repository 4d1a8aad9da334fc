"""Between a module's parameters and a PyTorch state dict: names, transpositions, strictness."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from flax import nnx

from mperceiver_jax.convert.formats.torch_files import StoredTensor
from mperceiver_jax.convert.keymaps.keymap import AssemblyMap, KeyMap
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.models import parameters

FLOATS = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
"""The types in which weights are taken."""


@dataclass(frozen=True)
class Found:
    """A parameter whose tensors are there and of the right shapes, not yet read.

    Attributes:
        keys: their names in the state dict: one, or the parts of a stack.
        tensors: arrays, or anything with `shape` that `np.asarray` turns into one.
        kind: how they relate to our array.
    """

    keys: tuple[str, ...]
    tensors: tuple[Any, ...]
    kind: parameters.Kind

    def read(self, dtype: np.dtype | None = None) -> np.ndarray:
        """The parameter's value in our layout, in another dtype or its own. Float64 becomes float32, and so do parts
        of several dtypes.

        Raises:
            ValueError: values that are not of `FLOATS`, not finite, or too large for the dtype; names the key.
        """
        parts = [
            _to_jax_array(_checked(*named, dtype), self.kind) for named in zip(self.keys, self.tensors, strict=True)
        ]
        if len({part.dtype for part in parts}) > 1:
            parts = [part.astype(np.float32) for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


@dataclass(frozen=True, eq=False)
class UnusedTensors:
    """Tensors that `load` leaves on a module for `dump`: a plain attribute, no part of its parameters."""

    tensors: Mapping[str, np.ndarray]


def from_torch(
    module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release", optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Translates a state dict into `{path: array}` for exactly the module's parameters.

    Tensors that the original module declares and never uses may be there, all or none: see `dead_tensors`.

    Args:
        module: gives the parameters to find; it is not changed.
        tensors: PyTorch names and shapes (conv OIHW, linear (out, in)).
        layout: the family of names: `release`, `diffusers`, `open_clip`, ... as `layouts` lists them.
        optional: regular expressions of *our* paths. What one of them matches may be absent, but only all
            of it together; the result then lacks it. A path belongs to the first that matches.

    Raises:
        ValueError: names every missing, unexpected and misshapen key, or the first with values that are of no use
            (see `Found.read`).
    """
    return {path: found.read() for path, found in match(module, tensors, layout, optional).items()}


def match(
    module: nnx.Module,
    tensors: Mapping[str, Any],
    layout: str = "release",
    optional: Sequence[str] = (),
    where: str = "",
    prefix: str = "",
) -> dict[str, Found]:
    """Finds a module's parameters in a state dict by names and shapes, without reading a value.

    Args:
        tensors: anything with a `shape`, and a `dtype` where it is known; otherwise as in `from_torch`.
        where: stands before the module's own paths, in the result and for `optional`.
        prefix: prefix of the keys in their file, for messages. Tensors with a `key` attribute are named by it.

    Raises:
        ValueError: names every key that is missing, unexpected, or of another shape or type.
    """
    names = keymap(module, layout)
    tensors = _canonical(tensors, names)
    display_name = lambda key: getattr(tensors.get(key), "key", prefix + key)
    variables = parameters.declared(module)
    groups = {path: _group(where + path, optional) for path in variables}
    there = {groups[path] for path in variables if any(key in tensors for key in names.keys(path))}
    found: dict[str, Found] = {}
    used: set[str] = set()
    missing, misshapen, mistyped = [], [], []
    for path, variable in variables.items():
        keys, kind, shape = names.keys(path), names.kind(path, variable.kind), variable.get_value().shape
        used.update(keys)
        if groups[path] is not None and groups[path] not in there:
            continue
        expected = (*shape[:-1], shape[-1] // len(keys)) if len(keys) > 1 else tuple(shape)
        for key in keys:
            if key not in tensors:
                missing.append(display_name(key))
            elif _our_shape(tuple(tensors[key].shape), kind) != expected:
                theirs = _to_torch_array(np.broadcast_to(np.False_, expected), kind, names.trailing_axes(path)).shape
                misshapen.append(f"{display_name(key)}: {tuple(tensors[key].shape)} given, {tuple(theirs)} expected")
            elif problem := _mistyped(getattr(tensors[key], "dtype", None)):
                mistyped.append(f"{display_name(key)}: {problem}")
        if not missing and not misshapen and not mistyped:
            found[where + path] = Found(keys, tuple(tensors[key] for key in keys), kind)
    dead = names.dead if any(key in tensors for key in names.dead) else {}
    missing += [display_name(key) for key in dead if key not in tensors]
    for key, expected in {**dead, **{key: value.shape for key, value in names.buffers.items()}}.items():
        if key in tensors and tuple(tensors[key].shape) != expected:
            misshapen.append(f"{display_name(key)}: {tuple(tensors[key].shape)} given, {expected} expected")
    used.update(dead, names.buffers)
    unexpected = [display_name(key) for key in tensors if key not in used and not names.ignored(key)]
    faults = {
        "missing": missing, "unexpected": unexpected, "of another shape": misshapen, "of another type": mistyped
    }  # fmt: skip
    if any(faults.values()):
        problems = " | ".join(_listed(what, some) for what, some in faults.items() if some)
        raise ValueError(f"The tensors are no {type(module).__name__} in layout {layout!r}. {problems}")
    return found


def _listed(what: str, faults: Sequence[str]) -> str:
    """`2 missing: a; b`."""
    return f"{len(faults)} {what}: " + "; ".join(sorted(faults)[:10]) + (" ..." if len(faults) > 10 else "")


def dead_tensors(
    module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release"
) -> dict[str, np.ndarray]:
    """Those tensors of a state dict that `from_torch` accepts and the module has no use for, by their keys.

    Kept together with the parameters, they make `to_torch` give the whole state dict back.
    """
    names = keymap(module, layout)
    tensors = _canonical(tensors, names)
    return {key: np.asarray(tensors[key]) for key in (*names.dead, *names.buffers) if key in tensors}


def to_torch(
    module: nnx.Module,
    values: Mapping[str, Any],
    layout: str = "release",
    dead: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Translates `{path: array}` into a state dict; the exact inverse of `from_torch`.

    Args:
        dead: what `dead_tensors` found. The original module loads strictly only with them, so where there
            are none, zeros stand for them, and for buffers what follows from the sizes.
    """
    names = keymap(module, layout)
    variables = parameters.declared(module)
    absent = sorted(set(variables) - set(values))
    if absent:
        raise ValueError(f"{type(module).__name__}: no value for {absent[:10]} ({len(absent)} in all)")
    tensors = {}
    for path, variable in variables.items():
        for key, tensor in theirs(names, path, variable.kind, np.asarray(values[path])).items():
            tensors[key] = np.asarray(tensor, order="C")
    kept = dead or {}
    for key, shape in names.dead.items():
        tensors[key] = np.asarray(kept[key]) if key in kept else np.zeros(shape, np.float32)
    for key, value in names.buffers.items():
        tensors[key] = np.asarray(kept.get(key, value))
    return tensors


def theirs(
    names: KeyMap | AssemblyMap, path: str, declared: parameters.Kind, value: np.ndarray
) -> dict[str, np.ndarray]:
    """The tensors, as views, that hold one parameter in a family of names: one, or the parts of a stack."""
    keys, kind = names.keys(path), names.kind(path, declared)
    parts = [value] if len(keys) == 1 else np.split(value, len(keys), -1)
    axes = names.trailing_axes(path)
    return {key: _to_torch_array(part, kind, axes) for key, part in zip(keys, parts, strict=True)}


def load(module: nnx.Module, tensors: Mapping[str, np.ndarray], layout: str = "release") -> nnx.Module:
    """Fills a module in place from a state dict (see `from_torch`) and returns it.

    Tensors that the module has no use for are kept on it for `dump`.
    """
    values, aside = from_torch(module, tensors, layout), dead_tensors(module, tensors, layout)
    if wrong := [key for key, value in aside.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{', '.join(wrong[:5])}: holds values that are not finite")
    parameters.assign(module, {path: np.asarray(value, order="C") for path, value in values.items()})
    module.kept_aside = UnusedTensors(aside)  # type: ignore[attr-defined]
    return module


def dump(module: nnx.Module, layout: str = "release") -> dict[str, np.ndarray]:
    """The state dict of a filled module; the exact inverse of `load`."""
    aside = getattr(module, "kept_aside", UnusedTensors({}))
    return to_torch(module, parameters.split(module)[1], layout, aside.tensors)


def _group(path: str, optional: Sequence[str]) -> int | None:
    return next((i for i, pattern in enumerate(optional) if re.match(pattern, path)), None)


def _canonical(tensors: Mapping[str, np.ndarray], names: KeyMap | AssemblyMap) -> dict[str, np.ndarray]:
    """The tensors under the spelling that the key map produces."""
    renamed: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        spelling = names.canonical(key)
        if spelling in renamed:
            raise ValueError(f"{key} and another key both mean {spelling}")
        renamed[spelling] = tensor
    return renamed


def _checked(key: str, tensor: Any, dtype: np.dtype | None) -> np.ndarray:
    where = f"{tensor.file}: {tensor.key}" if isinstance(tensor, StoredTensor) else key
    value = np.asarray(tensor)
    if problem := _mistyped(value.dtype):
        raise ValueError(f"{where}: {problem}")
    if not np.isfinite(value).all():
        raise ValueError(f"{where}: holds values that are not finite")
    own = np.dtype(np.float32) if value.dtype == np.float64 else value.dtype
    with np.errstate(over="ignore"):
        result = value.astype(dtype or own, copy=False)
    if result.dtype != value.dtype and not np.isfinite(result).all():
        raise ValueError(f"{where}: too large for {result.dtype}" + ("; choose another --dtype" if dtype else ""))
    return result


def _mistyped(dtype: Any) -> str | None:
    """The error of a dtype, or None; a dtype of another library is checked when the tensor is read."""
    if dtype in FLOATS or not isinstance(dtype, np.dtype | str):
        return None
    return f"holds {dtype}; weights are float16, bfloat16, float32 or float64"


def _to_jax_array(tensor: np.ndarray, kind: parameters.Kind) -> np.ndarray:
    """PyTorch's array in our layout. 1x1 convolutions that we hold as linears lose their size-1 axes."""
    if kind == "conv" and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if kind == "linear" and tensor.ndim > 1:
        while tensor.ndim > 2 and tensor.shape[-1] == 1:
            tensor = tensor[..., 0]
        return tensor.T if tensor.ndim == 2 else tensor
    return tensor


def _our_shape(shape: tuple[int, ...], kind: parameters.Kind) -> tuple[int, ...]:
    """The shape of `_to_jax_array` of a tensor of this shape."""
    if kind == "conv" and len(shape) == 4:
        return shape[2], shape[3], shape[1], shape[0]
    if kind == "linear" and len(shape) > 1:
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        return shape[::-1] if len(shape) == 2 else shape
    return shape


def _to_torch_array(value: np.ndarray, kind: parameters.Kind, trailing_axes: int) -> np.ndarray:
    """Our array as PyTorch stores it, with `trailing_axes` size-1 axes behind a linear's weight."""
    if kind == "conv":
        return value.transpose(3, 2, 0, 1)
    if kind == "linear":
        return value.T[(...,) + (None,) * trailing_axes]
    return value

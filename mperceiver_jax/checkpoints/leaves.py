"""The leaves of a checkpoint's entries: their names, dtypes and shapes, and how they are restored."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(dotted path, leaf) of a pytree, in the order of its leaves. Numbers become numpy arrays."""
    named = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        named.append((name, leaf if hasattr(leaf, "dtype") else np.asarray(leaf)))
    if len({name for name, _ in named}) != len(named):
        raise ValueError("checkpoints: two leaves of the state have the same dotted path")
    return named


def forms(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{dotted path: [dtype, shape]}, as a checkpoint's record keeps it."""
    return {leaf: [str(value.dtype), list(np.shape(value))] for leaf, value in leaves.items()}


def differences(stored: Mapping[str, list[Any]], wanted: Mapping[str, Any]) -> list[str]:
    """One sentence for each leaf whose recorded dtype or shape is not the wanted one, or that only one side has.

    Orbax would silently pad or crop arrays of another shape.
    """
    expected = forms(wanted)
    problems = [f"{leaf} is missing" for leaf in sorted(expected.keys() - stored.keys())]
    problems += [f"{leaf} is unexpected" for leaf in sorted(stored.keys() - expected.keys())]
    problems += [
        f"{leaf} is {stored[leaf][0]}{tuple(stored[leaf][1])}, expected {dtype}{tuple(shape)}"
        for leaf, (dtype, shape) in sorted(expected.items())
        if leaf in stored and list(stored[leaf]) != [dtype, shape]
    ]
    return problems


def restore_args(leaf: Any) -> ocp.RestoreArgs:
    """How Orbax restores a leaf: under its sharding, or as a numpy array where it has none."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=tuple(leaf.shape), dtype=leaf.dtype)


def own_copies(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Copies made by XLA: buffers from Orbax may not be donatable, which shows only as a lack of memory after a
    resume."""
    if not values:
        return {}
    shardings = {name: value.sharding for name, value in values.items()}
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(values)

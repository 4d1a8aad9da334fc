"""The identity of a set of parameters, on whatever mesh they are.

A checkpoint holds only what was trained, and is useless with other frozen parameters; it therefore records their
fingerprint. A cryptographic hash would need every byte on one host in one order. Instead each array is summed on
its devices, where the order of summation cannot matter because integers wrap around, and only the sums are hashed.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SEEDS = (0x9E3779B9, 0x85EBCA6B)


def fingerprint(params: Mapping[str, Any]) -> str:
    """64 hexadecimal digits from every path, dtype, shape, and bit.

    It is the same on any number of devices and processes, for numpy and JAX arrays. It is not secure against
    deliberate collisions. In a distributed run every process must call it.

    Args:
        params: {path: array}.
    """
    # All sums are dispatched before the first is fetched.
    sums = {}
    for path in sorted(params):
        value = params[path]  # Accessed once: it may be read from disk.
        sums[f"{path} {np.dtype(value.dtype).name} {tuple(value.shape)}"] = _sums(jnp.asarray(value))
    digest = hashlib.sha256()
    for description, parts in sums.items():
        numbers = " ".join(str(int(part)) for part in parts)
        digest.update(f"{description} {numbers}\n".encode())
    return digest.hexdigest()


@jax.jit
def _sums(value: jax.Array) -> tuple[jax.Array, ...]:
    """Two independent 32-bit checksums. Each element's bits are mixed with its position before they are
    added: a plain weighted sum would not detect that two elements of opposite sign are exchanged."""
    words = _words(value)
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for dimension in reversed(range(words.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dimension)
        position = position + index * np.uint32(stride % 2**32)
        stride *= words.shape[dimension]
    return tuple(jnp.sum(_mix(words ^ _mix(position + np.uint32(seed))), dtype=jnp.uint32) for seed in _SEEDS)


def _words(value: jax.Array) -> jax.Array:
    """The bits as uint32; elements of eight bytes give two words in a further last dimension."""
    if value.dtype == jnp.bool_:
        return value.astype(jnp.uint32)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = jnp.stack([value.real, value.imag], -1)
    width = value.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)
    return jax.lax.bitcast_convert_type(value, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser: a bijection in which every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

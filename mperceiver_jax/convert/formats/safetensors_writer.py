"""Writing a safetensors file tensor by tensor, so that a model of any size passes through little memory.

The format: eight bytes with the length of a JSON header, the header (name -> dtype, shape,
place), then the tensors one behind the other. Everything about it is known before the first
value is read.
"""

import json
import os
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

CODES = {np.dtype(np.float32): "F32", np.dtype(jnp.bfloat16): "BF16", np.dtype(np.float16): "F16"}
"""The dtypes that are written, and what the format calls them."""

Shapes = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


def write_streamed(path: str | os.PathLike[str], shapes: Shapes, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes `tensors` to the new file `path`, for good; inside `atomic_outputs`, it appears complete or not at all.

    Args:
        shapes: {name: (dtype, shape)}, dtypes in falling width (readers want float32 aligned).
        tensors: (name, array) in exactly the order of `shapes`; each is let go before the next is asked for.

    Raises:
        ValueError: an array is not the one that was announced.
    """
    with open(path, "xb") as file:
        file.write(_header(shapes))
        announced = iter(shapes.items())
        for name, tensor in tensors:
            expected = next(announced, None)
            if expected != (name, (tensor.dtype, tensor.shape)):
                raise ValueError(f"{name}: {tensor.dtype}{tensor.shape} came where {expected} was announced")
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        if (expected := next(announced, None)) is not None:
            raise ValueError(f"{expected[0]} was announced and did not come")
        file.flush()
        os.fsync(file.fileno())


def rounded(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`value` in another dtype, every element rounded to the nearest (ties to even).

    Raises:
        ValueError: elements that are not finite, or too large for the dtype; names the tensor.
    """
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: holds values that are not finite; such weights are of no use to anybody")
    with np.errstate(over="ignore"):
        result = value.astype(dtype)
    if not np.isfinite(result).all():
        largest, most = np.abs(value.astype(np.float32)).max(), float(jnp.finfo(dtype).max)
        raise ValueError(
            f"{name}: {largest:.6g} is too large for {dtype.name}, which ends at {most:.6g}; "
            "export with --dtype=float32"
        )
    return result


def _header(shapes: Shapes) -> bytes:
    # The mark is what PyTorch's libraries ask for before they read a file.
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape) in shapes.items():
        stop = start + dtype.itemsize * int(np.prod(shape))
        content[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

"""Tensor files: opening PyTorch checkpoints without running code and without reading them whole.

`open_tensors` says what a file holds; each tensor is read when it is asked for. Safetensors
files are read by their offsets and not mapped, so that what was read leaves no trace in memory.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipelines.files import placeholder_reason, scratch_dir
from mperceiver_jax.convert.formats.pickled_tensors import PICKLED, open_pickled

SUFFIXES = (".safetensors", *PICKLED)

# A header of the largest published models has less than a megabyte.
_HEADER_BYTES = 32 * 2**20
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# What training frameworks put before every key.
_WRAPPERS = ("net.", "module.", "_orig_mod.")
# Names of the restored network within a larger one, taken off where every key has them.
_NAMES = ("netG.", "generator.", "ema_model.", "model.")
# These begin like one of the names and are part of a published layout.
_KNOWN = ("model.diffusion_model.",)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    Attributes:
        key: its name in the file, for messages.
        dtype: numpy's, with bfloat16; a string where numpy has no such type.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype | str
    _read: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """The values, in memory of their own.

        Raises:
            ValueError: a dtype that numpy does not know, or the file changed meanwhile.
        """
        if isinstance(self.dtype, str):
            raise ValueError(f"{self.file}: {self.key} is stored as {self.dtype}, which is not supported")
        value = self._read()
        if value.shape != self.shape:
            raise ValueError(f"{self.file}: {self.key} could not be read whole; did the file change?")
        return value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = self.read()
        return value if dtype is None else value.astype(dtype)


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.safetensors`, `.ckpt`, `.bin`, `.pt` or `.pth` file, or of sharded ones by their
    `.index.json`. No code in a file is ever run; containers and prefixes of training frameworks
    (`state_dict`, `params_ema`, `net.`, ...) are taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, damaged, or holds more than tensors; or it is a pickled one
            and torch is not installed.
    """
    return {key: tensor.read() for key, tensor in open_tensors(path).items()}


def open_tensors(path: str | os.PathLike, averages: bool = True, key: str = "") -> dict[str, StoredTensor]:
    """What `read_torch` would read, without the values. Raises as `read_torch`.

    Args:
        averages: of a checkpoint that has parameters and their averages, take the averages.
        key: where the tensors are in a pickled checkpoint, as in `model` or `state.ema`; found by itself where empty.
    """
    return _unwrapped(_opened(Path(path), averages, key))


def is_index(name: str) -> bool:
    """Whether a file name is that of an index of shards, also of a variant (`model.safetensors.index.fp16.json`)."""
    return re.fullmatch(r".*\.index(\.[\w-]+)?\.json", name) is not None


def shards(index: Path) -> list[Path]:
    """The files that a `.index.json` names.

    Raises:
        ValueError: it is no index, or names files outside its directory.
    """
    try:
        places = json.loads(index.read_text())["weight_map"]
        names = sorted(set(places.values()))
        plain = all(name == os.path.basename(name) and name.endswith(SUFFIXES) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: damaged, or no index of shards") from error
    if not plain:
        raise ValueError(f"{index}: names files that are not shards in the same folder: {names[:5]}")
    return [index.parent / name for name in names]


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors to `path`; the file appears complete or not at all, also in the place of another."""
    path = Path(path)
    with scratch_dir(path) as room:
        save_file({key: np.asarray(value, order="C") for key, value in tensors.items()}, room / path.name)
        (room / path.name).replace(path)


def _opened(path: Path, averages: bool = True, key: str = "") -> dict[str, StoredTensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if is_index(path.name):
        return _sharded(path)
    with open(path, "rb") as file:
        if reason := placeholder_reason(file.read(512)):
            raise ValueError(f"{path}: {reason}")
    # `weights.PTH` and `weights.pth.tar` are what `weights.pth` is.
    name = path.name.lower().removesuffix(".tar")
    if name.endswith(".safetensors"):
        if key:
            raise ValueError(f"{path}: --key={key} is for pickled checkpoints; a safetensors file has no levels")
        return _safetensors(path)
    if name.endswith(PICKLED):
        return {name: StoredTensor(path, name, *entry) for name, entry in open_pickled(path, averages, key).items()}
    raise ValueError(f"{path}: a file of another kind; tensors are read from {', '.join(SUFFIXES)} and *.index.json")


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER_BYTES:
            raise ValueError(f"{path}: damaged or no safetensors file (it claims a header of {size:,} bytes)")
        try:
            # The library checks everything: the header's form, and that the tensors fill the file exactly.
            with safe_open(path, framework="numpy"):
                header = json.loads(file.read(size))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: damaged or no safetensors file ({error})") from error
    header.pop("__metadata__", None)
    found = {}
    for key, entry in header.items():
        shape, offset = tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
        code = _DTYPES.get(entry["dtype"])
        dtype = entry["dtype"] if code is None else np.dtype(code)
        found[key] = StoredTensor(path, key, shape, dtype, _at(path, offset, dtype, shape))
    return found


def _at(path: Path, offset: int, dtype: np.dtype | str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        value = np.fromfile(path, dtype, math.prod(shape), offset=offset)
        return value.reshape(shape) if value.size == math.prod(shape) else value

    return read


def _sharded(index: Path) -> dict[str, StoredTensor]:
    places = {file.name: _opened(file) for file in shards(index)}
    found = {}
    for key, name in json.loads(index.read_text())["weight_map"].items():
        if key not in places[name]:
            raise ValueError(f"{index}: {key} should be in {name} and is not")
        found[key] = places[name][key]
    return found


def _unwrapped(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Without a prefix that a training framework put before every key, or (`_WRAPPERS`) every key but a few others."""
    for prefix in _NAMES:
        if all(key.startswith(prefix) and not key.startswith(_KNOWN) for key in tensors):
            return _unwrapped({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    for prefix in _WRAPPERS:
        bare = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        wrapped = sum(key.startswith(prefix) for key in tensors)
        if wrapped and 10 * wrapped >= 9 * len(tensors) and len(bare) == len(tensors):
            return _unwrapped(bare)
    return tensors

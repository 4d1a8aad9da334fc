"""An image as it lies on disk, a pair of them, and the record that keeps both with their original bytes."""

from __future__ import annotations

import functools
import hashlib
import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import scipy.io
from PIL import Image

from data_pipelines.images import checked_size

_BLOCK_BYTES = 3 * 256**2  # SIDD's blocks, without compression


class UnusablePair(ValueError):
    """A pair that cannot be stored; `kind` is 'unreadable', 'size' or 'misnamed', `name` the image's file."""

    def __init__(self, kind: str, name: str, what: str):
        super().__init__(f"{name}: {what}")
        self.kind, self.name, self.what = kind, name, what


@dataclass(frozen=True)
class ImageRef:
    """An image file, or the image number `block` of a MATLAB file that holds many."""

    path: Path
    block: int | None = None

    def read(self) -> bytes:
        """The encoded image: the file's own bytes. A MATLAB block, which has none, becomes a PNG (lossless)."""
        if self.block is None:
            return self.path.read_bytes()
        encoded = io.BytesIO()
        Image.fromarray(_blocks(self.path)[self.block]).save(encoded, "PNG")
        return encoded.getvalue()

    def size(self) -> int:
        """Bytes that `read` gives, a guess for a MATLAB block; 0 for a file that is not there (a dead link)."""
        if self.block is not None:
            return _BLOCK_BYTES
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def fingerprint(self) -> str:
        """Changes when the file does (its name, size and time of writing)."""
        try:
            stat = self.path.stat()
        except OSError as error:
            return f"{self.path.name}:{self.block}:{error.errno}"
        return f"{self.path.name}:{self.block}:{stat.st_size}:{stat.st_mtime_ns}"


@dataclass(frozen=True)
class Pair:
    """A degraded and a clean image. Sets of clean images have no `lq`; secret test sets no `gt`."""

    id: str
    lq: ImageRef | None
    gt: ImageRef | None

    def fingerprint(self) -> str:
        return "|".join([self.id, *(p.fingerprint() if p else "" for p in (self.lq, self.gt))])


@dataclass(frozen=True)
class Record:
    """What is stored of a pair: original encoded bytes, and what one asks before decoding.

    Attributes:
      id: path in the source without suffix.
      task: of the data set, see `layouts`.
      height, width: pixels, as decoded (after EXIF orientation).
      lq, gt: encoded images; None where the set has none.
    """

    id: str
    task: str
    height: int
    width: int
    lq: bytes | None
    gt: bytes | None

    def packed(self) -> bytes:
        return msgpack.packb({k: v for k, v in vars(self).items() if v is not None})

    @classmethod
    def unpacked(cls, data: bytes) -> Record:
        fields: dict[str, Any] = {"lq": None, "gt": None, **msgpack.unpackb(data)}
        return cls(**fields)

    def digest(self) -> str:
        """SHA-256 of the id and both images: the same wherever and however they are stored."""
        sums = [hashlib.sha256(p).hexdigest() if p is not None else "-" for p in (self.lq, self.gt)]
        return hashlib.sha256("\n".join([self.id, *sums]).encode()).hexdigest()


def read_pair(pair: Pair, task: str) -> Record:
    """Reads both images and decodes them once, to be sure that training can.

    Raises UnusablePair for an image that cannot be read or decoded, for two of different sizes, and for a name that
    no record can hold.
    """
    try:
        pair.id.encode()
    except UnicodeEncodeError:
        path = next(image.path for image in (pair.lq, pair.gt) if image)
        raise UnusablePair("misnamed", str(path), "its name is not UTF-8; rename it") from None
    encoded: dict[str, bytes] = {}
    size: tuple[int, int] | None = None
    for side in ("lq", "gt"):
        image: ImageRef | None = getattr(pair, side)
        if image is None:
            continue
        try:
            encoded[side] = image.read()
            found = checked_size(encoded[side])
        except (OSError, ValueError) as error:
            what = str(error).removeprefix("cannot read the image: ")
            raise UnusablePair("unreadable", str(image.path), what) from None
        if size is not None and found != size:
            what = f"{found[1]}x{found[0]}, but its degraded image {pair.id} is {size[1]}x{size[0]}"
            raise UnusablePair("size", str(image.path), what)
        size = found
    assert size is not None, "a pair has an image at least"
    return Record(pair.id, task, size[0], size[1], encoded.get("lq"), encoded.get("gt"))


def blocks_in(path: Path) -> int:
    """How many images a MATLAB file holds; nothing is read but its table.

    Raises ValueError where it holds no uint8 array of (..., height, width, 3).
    """
    return int(np.prod(_array_in(path)[1][:-3]))


def _array_in(path: Path) -> tuple[str, tuple[int, ...]]:
    try:
        arrays = scipy.io.whosmat(path)
    except Exception as error:  # whatever the reader stumbles over in a damaged file
        raise ValueError(f"{path}: not a readable MATLAB file of version 5 ({error})") from None
    for name, shape, kind in arrays:
        if kind == "uint8" and len(shape) >= 4 and shape[-1] == 3:
            return name, shape
    raise ValueError(f"{path}: holds no uint8 images, only {arrays}")


_LOADING = threading.Lock()


def _blocks(path: Path) -> np.ndarray:
    with _LOADING:  # two threads must not both load a quarter of a gigabyte
        array = _loaded(path)
    if isinstance(array, str):
        raise ValueError(array)
    return array


@functools.lru_cache(maxsize=2)
def _loaded(path: Path) -> np.ndarray | str:
    """(images, height, width, 3), or why not: a damaged file is not read again for each of its images."""
    name, shape = _array_in(path)
    try:
        array = scipy.io.loadmat(path, variable_names=[name])[name]
    except Exception as error:
        return f"a damaged MATLAB file ({error})"
    return np.ascontiguousarray(array.reshape(-1, *shape[-3:]))

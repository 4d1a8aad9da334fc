"""PyTorch's pickled checkpoints (.ckpt, .bin, .pt, .pth), opened for their tensors only.

torch's weights-only reader builds tensors and plain containers and refuses everything else.
The one addition: objects that trainers store together with the tensors (the state of callbacks,
hyperparameters, numpy's numbers in schedules) become empty shells, since published checkpoints contain them.
"""

import contextlib
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from data_pipelines.messages import shorten_list
from mperceiver_jax.convert.formats.pickle_limits import PickleLimitExceeded, check_limits

PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")

# Where frameworks keep the tensors within a checkpoint; averages before what they are averages of.
_CONTAINERS = ("state_dict", "params_ema", "params")
# Module prefixes of objects other than tensors; they become inert stubs and are never imported or called.
_BYSTANDERS = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "torch.optim."),
    *("numpy.", "pathlib.", "argparse.Namespace"),
)
# Pages of a mapped file stay in memory until it is closed; it is opened again after so many bytes.
_REOPEN_AFTER = 256 * 2**20

Entry = tuple[tuple[int, ...], np.dtype | str, Callable[[], np.ndarray]]


def open_pickled(path: Path, averages: bool = True, key: str = "") -> dict[str, Entry]:
    """{key: (shape, dtype, function that reads the values)}; a dtype unknown to numpy is given by its name.

    Args:
        averages: of a checkpoint that has parameters and their averages, take the averages.
        key: where the tensors are, as in `model` or `state.ema`; found by itself where empty.

    Raises:
        ValueError: torch is not installed; the file is damaged, or holds more than tensors; names the file.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path}: reading pickled checkpoints takes torch (pip install 'mperceiver-jax[torch]'); "
            ".safetensors files are read without"
        ) from error
    _check_sums(path)
    file = _MappedFile(path, averages, key)
    found: dict[str, Entry] = {}
    for name, tensor in file.tensors().items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
            raise ValueError(f"{path}: {name} is no plain tensor (sparse, quantised, nested or without values)")
        found[name] = (tuple(tensor.shape), _dtype(tensor), lambda name=name: file.read(name))  # type: ignore[misc]
    return found


def _check_sums(path: Path) -> None:
    """Raises ValueError where the contents of a zipped checkpoint do not have their checksums."""
    if not zipfile.is_zipfile(path) or _is_compressed(path):
        return  # The format before 2020 has no checksums, and what is compressed is refused later.
    try:
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or no PyTorch checkpoint ({error})") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise ValueError(f"{path}: a zip of other files ({shorten_list(names)}), not a checkpoint; unzip it")
    if damaged is not None:
        raise ValueError(f"{path}: damaged: {damaged} in it does not have its checksum; fetch the file again")


class _MappedFile:
    """A checkpoint whose tensors are views of the file."""

    def __init__(self, path: Path, averages: bool, key: str):
        self._path, self._averages, self._key, self._read = path, averages, key, 0
        self._state = _load(path, averages, key)

    def tensors(self) -> dict[str, Any]:
        return self._state

    def read(self, key: str) -> np.ndarray:
        if self._read > _REOPEN_AFTER:
            self._state = {}
            self._state, self._read = _load(self._path, self._averages, self._key), 0
        tensor = self._state[key]
        size = math.prod(tensor.shape) * tensor.element_size()
        if size > self._path.stat().st_size:
            raise ValueError(f"{self._path}: {key} claims {size:,} bytes, more than the file has")
        self._read += size
        return _numpy(tensor).copy()


class _Shell:
    """Stands for an object that is no tensor; takes any state and does nothing with it."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Shell":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _load(path: Path, averages: bool, key: str) -> dict[str, Any]:
    """The tensors of a checkpoint by their keys, as views of the mapped file."""
    content = None
    try:
        compressed = zipfile.is_zipfile(path) and _is_compressed(path)
        if not compressed:
            content = _content(path)
    except PickleLimitExceeded as error:
        raise ValueError(f"{path}: damaged, or made to do harm: {error}; not read") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: damaged, or holds more than tensors, which could run code ({_gist(error)}); not read. "
            "Take a .safetensors file, or save the bare state dict where you trust the file"
        ) from error
    except Exception as error:  # Bytes that are no pickle, or a crafted one, can lead to any.
        raise ValueError(f"{path}: damaged, or no PyTorch checkpoint ({_gist(error)})") from error
    if compressed:
        raise ValueError(f"{path}: compressed, as PyTorch never writes; not read")
    return _tensors(content, path, averages, key)


def _is_compressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _content(path: Path) -> Any:
    """What torch's weights-only reader makes of a file, tensors mapped where the format allows it."""
    import torch

    zipped = zipfile.is_zipfile(path)
    with warnings.catch_warnings(action="ignore"):
        _check_pickles(path, zipped)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else _globals(path)
        # torch fills plain mappings only, so what is one by its name becomes one.
        shells: list[Any] = [
            (OrderedDict if name.endswith("Dict") else _Shell, name) for name in unknown if name.startswith(_BYSTANDERS)
        ]
        with torch.serialization.safe_globals(shells):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)


def _check_pickles(path: Path, zipped: bool) -> None:
    """Checks the limits of every pickle that torch reads in a checkpoint.

    Raises:
        PickleLimitExceeded: a pickle whose objects take too long to build.
        ValueError: bytes that are no pickle, whose limits therefore cannot be checked.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as file:
                        check_limits(file)
        return
    with open(path, "rb") as file:
        # The format before 2020: three short pickles, that of the content and that of the keys of the storages.
        for _ in range(5):
            if file.peek(1):  # torch reports a file that ends too early.
                check_limits(file)


def _globals(path: Path) -> set[str]:
    """The names in a file of the format before 2020: three short pickles before that of the content."""
    found: set[str] = set()
    with open(path, "rb") as file, contextlib.suppress(ValueError):  # torch reports a damaged file.
        for _ in range(4):
            operations = pickletools.genops(file)
            found |= {str(value).replace(" ", ".") for code, value, _ in operations if code.name == "GLOBAL"}
    return found


def _tensors(content: Any, path: Path, averages: bool, key: str) -> dict[str, Any]:
    """The state dict of a checkpoint: at `key`, under a name that frameworks use, or the only one there is."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds no state dict but a {type(content).__name__}")
    places = _state_dicts(content)
    if key:
        if key not in places:
            raise ValueError(f"{path}: --key={key}: there are tensors at {', '.join(places) or 'no place'}")
        return places[key]
    inside, known = "", places.get("")
    for name in _CONTAINERS if averages else ("params", *_CONTAINERS):
        if (below := f"{inside}.{name}".lstrip(".")) in places or any(one.startswith(below + ".") for one in places):
            inside, known = below, places.get(below)
    if known is None and len(places) == 1:
        (known,) = places.values()
    if known is None and places:
        shown = ", ".join(f"{name} ({len(tensors)} tensors)" for name, tensors in places.items())
        raise ValueError(f"{path}: holds several sets of tensors: {shown}; choose one with --key=NAME")
    if known is None:
        names = ", ".join(map(str, list(content)[:10])) or "nothing"
        raise ValueError(f"{path}: holds no tensors, but {names}")
    return known


def _state_dicts(content: Mapping[Any, Any], where: str = "", depth: int = 3) -> dict[str, dict[str, Any]]:
    """{dotted place: tensors by name} of the mappings that hold tensors themselves; "" is the outermost."""
    import torch

    own = {str(name): value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    found = {where: own} if own else {}
    for name, value in content.items():
        # The optimizer's moments are by number.
        if isinstance(value, Mapping) and depth and isinstance(name, str) and "optim" not in name:
            found |= _state_dicts(value, f"{where}.{name}".lstrip("."), depth - 1)
    return found


def _dtype(tensor: Any) -> np.dtype | str:
    import torch

    if tensor.dtype == torch.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    try:
        return torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError:
        return str(tensor.dtype).removeprefix("torch.")


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _gist(error: BaseException) -> str:
    """What torch says was found, without its advice."""
    text = " ".join(str(error).split()) or type(error).__name__
    if blocked := re.search(r"GLOBAL \S+ whose module \S+ is blocked", text):
        return blocked[0]
    _, _, telling = text.rpartition("WeightsUnpickler error: ")
    return telling.partition(" Please use")[0].partition(" Check the documentation")[0][:200].rstrip(". ")

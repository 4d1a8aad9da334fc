"""Tensor files: reading PyTorch checkpoints without running code, writing safetensors."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.safetensors` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: only .safetensors files are read; save the state dict as one first")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file ({error})") from error


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors to `path`; the file appears complete or not at all."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    try:
        save_file({key: np.asarray(value, order="C") for key, value in tensors.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""Training examples kept on disk, one file each: what is too dear to make anew at every step.

The detail refinement module trains on latents that a sampler has produced. They are made
once, stored with their images, and read back like any other source.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data_pipelines.files import naming
from data_pipelines.mixture import TaskMixture
from data_pipelines.pipeline import PipelineConfig, TrainBatches

Example = dict[str, np.ndarray]
_PICTURES = ("lq", "gt")


def example_path(folder: str | os.PathLike[str], index: int) -> Path:
    return Path(folder) / f"{index:07d}.npz"


def write_example(folder: str | os.PathLike[str], index: int, example: Mapping[str, Any]) -> None:
    """Stores an example; its file appears complete or not at all.

    Images (`lq`, `gt`, float in [0, 1]) are kept with 16 bits, everything else as it is.
    """
    path = example_path(folder, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        name: np.round(np.clip(value, 0, 1) * 65535).astype(np.uint16) if name in _PICTURES else np.asarray(value)
        for name, value in example.items()
    }
    partial = path.with_suffix(".partial")
    try:
        with naming(partial), open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **stored)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class StoredExamples:
    """Random access to the examples 0 .. count - 1 of a folder.

    Raises:
        FileNotFoundError: names the first example that is not there.
    """

    folder: str
    count: int

    def __post_init__(self) -> None:
        for index in range(self.count):
            if not example_path(self.folder, index).is_file():
                raise FileNotFoundError(f"{example_path(self.folder, index)}: no such stored example")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        path = example_path(self.folder, index)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not a readable stored example ({error}); delete it and run again") from None
        return {
            name: value.astype(np.float32) / np.float32(65535) if name in _PICTURES else value
            for name, value in found.items()
        }


def stored_batches(
    folder: str, count: int, config: PipelineConfig, process_index: int = 0, process_count: int = 1
) -> TrainBatches:
    """Endless, shuffled, checkpointable batches of stored examples; this host's part of each.

    Args:
        config: batch size, seed, threads and workers are taken from it.
    """
    stream = grain.MapDataset.source(StoredExamples(folder, count)).seed(config.seed).shuffle().repeat(None)
    share = TaskMixture([1.0], config.batch_size, process_index, process_count)
    mixed = grain.MapDataset.select_from_datasets([stream], share)
    return TrainBatches(mixed.batch(config.batch_size // process_count), config)


def write_manifest(folder: str | os.PathLike[str], note: Mapping[str, Any]) -> None:
    """Says how the examples of a folder were made (`note.json`), before the first is written."""
    path = Path(folder) / "note.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with naming(partial):
        partial.write_text(json.dumps(dict(note), indent=2, sort_keys=True) + "\n")
    os.replace(partial, path)


def read_note(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """How the examples of a folder were made; None where nothing says so."""
    path = Path(folder) / "note.json"
    return json.loads(path.read_text()) if path.is_file() else None

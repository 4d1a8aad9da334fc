"""What frozen networks made of fixed training examples, in ArrayRecord files: read at the speed of the disk.

    FOLDER/note.json                         how it was made, and the arrays of a record
    FOLDER/part-00000-000.array_record ...   part and host; complete or absent

Every record holds the same arrays, of the same shapes and types, one after the other by name as raw bytes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.config import PipelineConfig
from data_pipelines.files import replacement
from data_pipelines.mixture import TaskMixture
from data_pipelines.pipeline import TrainBatches
from data_pipelines.stored.array_records import ArrayRecords
from data_pipelines.stored.manifest import read_manifest

Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Name -> (shape, name of the dtype) of the arrays of a record."""

# Fields of `PipelineConfig` that leave the examples as they are.
_FREE = ("threads", "prefetch", "workers", "cache_megabytes", "heldout_images")


def part_path(folder: str | os.PathLike[str], part: int, host: int) -> Path:
    return Path(folder) / f"part-{part:05d}-{host:03d}.array_record"


def data_fingerprint_fields(config: PipelineConfig) -> dict[str, Any]:
    """The settings on which the examples of a stream depend."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}


def write_part(
    folder: str | os.PathLike[str], part: int, host: int, examples: Iterable[Mapping[str, np.ndarray]], layout: Layout
) -> None:
    """Writes one file of records; it appears complete or not at all.

    Raises:
        ValueError: an example that does not fit the layout.
    """
    path = part_path(folder, part, host)
    with replacement(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        try:
            for example in examples:
                writer.write(_packed(example, layout))
        finally:
            writer.close()


class FeatureStore:
    """Random access to all records of a folder, in the order of parts and hosts.

    Raises:
        FileNotFoundError: no note, or a part is missing (names the first).
        ValueError: on access, a record that is not as the note says.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        note = read_manifest(folder)
        if note is None:
            raise FileNotFoundError(f"{folder}: no stored features, note.json is missing")
        files = [part_path(folder, part, host) for part in range(note["parts"]) for host in range(note["hosts"])]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: this part of the stored features is missing")
        self._layout = {name: (tuple(shape), dtype) for name, (shape, dtype) in sorted(note["layout"].items())}
        self._folder = str(folder)
        self._records = ArrayRecords([str(file) for file in files], "delete the folder to make it again")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[index]
        sizes = {name: _size(*kind) for name, kind in self._layout.items()}
        if len(record) != sum(sizes.values()):
            raise ValueError(
                f"{self._folder}: record {index} has {len(record)} bytes, not {sum(sizes.values())}; "
                "delete the folder to make it again"
            )
        found, start = {}, 0
        for name, (shape, dtype) in self._layout.items():
            values = np.frombuffer(record, _dtype(dtype), math.prod(shape), start)
            found[name] = values.reshape(shape)
            start += sizes[name]
        return found


def feature_batches(
    folder: str, config: PipelineConfig, process_index: int = 0, process_count: int = 1
) -> TrainBatches:
    """Endless, shuffled, checkpointable batches of stored features; this host's part of each.

    Args:
        config: batch size, seed, threads and workers are taken from it.
    """
    stream = grain.MapDataset.source(FeatureStore(folder)).seed(config.seed).shuffle().repeat(None)
    share = TaskMixture([1.0], config.batch_size, process_index, process_count)
    mixed = grain.MapDataset.select_from_datasets([stream], share)
    return TrainBatches(mixed.batch(config.batch_size // process_count), config)


def _packed(example: Mapping[str, np.ndarray], layout: Layout) -> bytes:
    pieces = []
    for name, (shape, dtype) in sorted(layout.items()):
        value = np.asarray(example[name])
        if (value.shape, value.dtype.name) != (tuple(shape), dtype):
            raise ValueError(f"{name}: {value.dtype.name} {value.shape} does not fit {dtype} {tuple(shape)}")
        pieces.append(np.ascontiguousarray(value).tobytes())
    return b"".join(pieces)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * _dtype(dtype).itemsize

"""Sources by name, as configs and commands write them.

/data/prepared/rain100l:train        prepared data, one split (none needed where there is only one)
gs://bucket/prepared/gopro:train     the same over a network
/data/photographs                    a folder of clean images
tfds:NAME/CONFIG:SPLIT               a prepared set of tensorflow_datasets (`tfds_sets`)
A*3 + B                              two sources as one, the first three times in an epoch
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from data_pipelines.datasets.shards import MANIFEST
from data_pipelines.sources.folders import ImageFolder
from data_pipelines.sources.shards import PreparedImages


class Source(Protocol):
    """What grain reads: elements are {'name', 'image'} or {'name', 'lq', 'gt'}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class ConcatSources:
    """Several sources one behind the other, each as often as it is repeated.

    Args:
      parts: (source, repeats of at least 1).
    """

    def __init__(self, parts: Sequence[tuple[Source, int]]):
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(source) * repeat for source, repeat in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        source, _ = self.parts[which]
        return source[(index - (int(self._ends[which - 1]) if which else 0)) % len(source)]


def parse_source(text: str) -> list[tuple[str, int]]:
    """'A*3 + B' -> [('A', 3), ('B', 1)]. Raises ValueError for an empty name or a repeat below 1."""
    parts = []
    for part in text.split(" + "):
        name, star, repeat = part.strip().rpartition("*")
        if not (star and repeat.isdecimal()):
            name, repeat = part.strip(), "1"
        if not name or int(repeat) < 1:
            raise ValueError(f"{text!r} is no source; one is written NAME, NAME*REPEATS or A*3 + B")
        parts.append((name, int(repeat)))
    return parts


def open_source(text: str, cache_megabytes: float = 0) -> Source:
    """The source that a text names (see the module); the cache is for each part.

    Raises FileNotFoundError where there is nothing, ValueError where it cannot be used.
    """
    parts = [(_open_one(name, cache_megabytes), repeat) for name, repeat in parse_source(text)]
    return parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else ConcatSources(parts)


def _open_one(name: str, cache_megabytes: float) -> Source:
    if name.startswith("tfds:"):
        from data_pipelines.sources.tfds import TfdsImages

        return TfdsImages.named(name, cache_megabytes)
    split = re.fullmatch(r"(.+):(\w+)", name)
    for folder, part in ((name, ""), (split[1], split[2]) if split else (name, "")):
        if (epath.Path(folder) / MANIFEST).exists():
            return PreparedImages(folder, part, cache_megabytes)
    return ImageFolder(name, cache_megabytes)

"""A few percent of a task's pairs: those that train, and the rest, which never does.

Which pairs are chosen depends on the task and the percentage only: every stage of a run sees the same ones,
and a larger percentage contains the smaller. Clean photographs become a set of pairs first: several cuts of
each, degraded once and for all, as pairs on disk would be.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.config import PipelineConfig
from data_pipelines.examples import degrade, random_cut
from data_pipelines.images import as_float
from data_pipelines.sources.folders import PixelCache
from data_pipelines.sources.spec import Source
from data_pipelines.tasks import Task

CUTS = 8
"""Pairs made from one photograph where it is cut; whole photographs make one pair each."""

_SEED = 20240617  # Not the experiment's: its stages draw from different seeds.


class SyntheticPairs:
    """Pairs made from clean photographs; element: {'name', 'lq', 'gt'} with 8 bits. Pair k never changes."""

    def __init__(self, photos: Source, config: PipelineConfig, task: Task):
        self._photos, self._config, self._task = photos, config, task
        self._cache = PixelCache(config.cache_megabytes)

    def __len__(self) -> int:
        return len(self._photos) * (CUTS if self._config.image_size else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        which, cut = index % len(self._photos), index // len(self._photos)
        lq, gt = self._cache.fetch(index, lambda: self._made(which, index))
        return {"name": f"{which}_{cut}", "lq": lq, "gt": gt}

    def _made(self, which: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([_SEED, self._task.label, index])
        gt = np.ascontiguousarray(as_float(random_cut(self._photos[which]["image"], self._config, rng)))
        both = np.stack([degrade(gt, self._task, self._config, rng), gt])
        return np.rint(np.clip(both, 0, 1) * 255).astype(np.uint8)


class Subset:
    """Some elements of a source, by their numbers."""

    def __init__(self, source: Source, numbers: np.ndarray):
        self._source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self.numbers[index])]


def few_pairs(source: Source, config: PipelineConfig, task: Task) -> tuple[Subset, Subset]:
    """(the pairs of `task` that train, at least one; the others). `config.train_percent` says how many.

    Args:
      source: of pairs or of clean photographs.
    """
    pairs = source if "lq" in source[0] else SyntheticPairs(source, config, task)
    order = np.random.default_rng([_SEED, task.label]).permutation(len(pairs))
    chosen = max(1, round(len(pairs) * config.train_percent[task.name] / 100))
    return Subset(pairs, order[:chosen]), Subset(pairs, order[chosen:])

"""The configuration of a data pipeline: everything that decides the batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from data_pipelines import transforms
from data_pipelines.degradations.protocols import protocol_named
from data_pipelines.mixture import MIXINGS, Mixing


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything that decides the batches.

    Attributes:
      batch_size: examples in a global batch, over all hosts.
      crop: side of the square training crop, pixels.
      image_size: side of the square cut from a clean photograph before it is degraded; the CLIP view shows
        all of it. 0 degrades the whole photograph, which is slow and what paired data do.
      image_scales: (least, most) factor by which the cut is larger than image_size before it is reduced to
        it, drawn uniformly; above 1 lets small models see whole scenes. The cut never exceeds the photograph.
      clip_size: side of the CLIP view; 0 makes none, for models that look at nothing but the crop.
      clip_view: 'full' shows CLIP the whole degraded image, 'crop' the training crop, both resized; 'native'
        shows `clip_views` squares of the degraded image at its native resolution.
      clip_views: number of squares of clip_view='native', a square number.
      severities: 'standard' draws the degradations of the tasks as held-out examples do; 'wide' draws them over
        the whole range of real images (`degradations.wide_range`), in training only; 'mixed' draws every
        second image from each.
      flips: 'none', 'horizontal', 'dihedral' or 'dihedral_nonidentity', see `transforms.flip`.
      weights: task name -> weight; tasks not named are left out. Empty: all tasks alike.
      seed: of everything random, at least 0.
      threads: decoding threads of a process; 0 prepares batches when they are asked for.
      prefetch: batches kept ready by the threads.
      workers: further processes; 0 uses threads only (better below about four cores).
      mixing: how tasks share the batches, one of `mixture.MIXINGS`: by `weights`, or by how many images
        (times repeats) their sources have.
      temperature: of mixing='temperature'.
      pairs: task name -> {'lq': folder, 'gt': folder, 'pairing': rule (default 'stem')} or a name as in
        `open_source` (prepared data, TFDS; repeats and sums of them), also as {'source': name}; such a task
        reads its pairs instead of degrading photographs. Clean images from a source are degraded as the
        task does.
      degradations: task name -> name of a published degradation (`degradations.protocols`) that takes the
        place of the task's own.
      new_tasks: names of tasks beyond those known, whose labels follow theirs in this order; each needs an
        entry in `degradations` or `pairs`.
      train_percent: task name -> percent of its pairs that train, chosen once and for all (`few_pairs`); such a
        task degrades fixed cuts of photographs once instead of others every time.
      images: source of clean training photographs, a folder or as in `open_source`; '' takes the bundled ones.
      heldout_images: folder of clean photographs kept from training; '' takes the bundled ones.
      cache_megabytes: decoded images kept in memory, for each source and worker.
    """

    batch_size: int = 16
    crop: int = 256
    image_size: int = 0
    image_scales: tuple[float, float] = (1.0, 1.0)
    clip_size: int = 224
    clip_view: Literal["full", "crop", "native"] = "full"
    clip_views: int = 1
    severities: Literal["standard", "wide", "mixed"] = "standard"
    flips: transforms.Flips = "horizontal"
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mixing: Mixing = "weights"
    temperature: float = 1.0
    seed: int = 0
    threads: int = 2
    prefetch: int = 4
    workers: int = 0
    pairs: Mapping[str, Mapping[str, str] | str] = dataclasses.field(default_factory=dict)
    degradations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    new_tasks: tuple[str, ...] = ()
    train_percent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: str = ""
    heldout_images: str = ""
    cache_megabytes: float = 300.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("image_size", "clip_size", "seed", "threads", "prefetch", "workers", "cache_megabytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")
        if self.image_size and self.crop > self.image_size:
            raise ValueError(f"crop {self.crop} is larger than image_size {self.image_size}")
        if len(self.image_scales) != 2 or not 1 <= self.image_scales[0] <= self.image_scales[1]:
            raise ValueError(f"image_scales must be 1 <= least <= most: {self.image_scales}")
        if self.clip_view not in ("full", "crop", "native"):
            raise ValueError(f"clip_view must be 'full', 'crop' or 'native', not {self.clip_view!r}")
        if self.clip_views < 1 or math.isqrt(self.clip_views) ** 2 != self.clip_views:
            raise ValueError(f"clip_views must be a square number, not {self.clip_views}")
        if self.severities not in ("standard", "wide", "mixed"):
            raise ValueError(f"severities must be 'standard', 'wide' or 'mixed', not {self.severities!r}")
        if self.flips not in transforms.FLIPS:
            raise ValueError(f"flips must be one of {', '.join(transforms.FLIPS)}, not {self.flips!r}")
        for task, pair in self.pairs.items():
            if isinstance(pair, str):
                continue
            if set(pair) != {"source"} and not {"lq", "gt"} <= set(pair) <= {"lq", "gt", "pairing"}:
                raise ValueError(f"pairs[{task!r}] has {sorted(pair)}; it takes 'source', or 'lq', 'gt' and 'pairing'")
        for task, name in self.degradations.items():
            try:
                protocol_named(name)
            except ValueError as error:
                raise ValueError(f"degradations[{task!r}]: {error}") from None
        for task, percent in self.train_percent.items():
            if not 0 < percent <= 100:
                raise ValueError(f"train_percent[{task!r}] must be above 0 and at most 100, not {percent}")
        for task in self.new_tasks:
            if task not in self.degradations and task not in self.pairs:
                raise ValueError(f"new_tasks: {task!r} needs an entry in degradations or in pairs")
        if self.mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, not {self.mixing!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")

"""From an element of a source to a training example, and from examples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import transforms
from data_pipelines.config import PipelineConfig
from data_pipelines.degradations.protocols import protocol_named
from data_pipelines.degradations.wide_range import WIDE
from data_pipelines.images import as_float
from data_pipelines.tasks import Task

Example = dict[str, Any]
Batch = dict[str, np.ndarray]


class MakeExample(grain.transforms.RandomMap):
    """Turns an element of a source into a training example of one task."""

    def __init__(self, config: PipelineConfig, task: Task):
        self._config, self._task = config, task

    def random_map(self, element: Example, rng: np.random.Generator) -> Example:
        config = self._config
        if "image" in element:
            # Flipped last: a cut is smaller than its image, and resizing wants its pixels in order.
            (cut,) = transforms.flip((random_cut(element["image"], config, rng),), config.flips, rng)
            gt = np.ascontiguousarray(as_float(cut))
            lq = self._degraded(gt, rng)
        else:
            lq, gt = transforms.flip((element["lq"], element["gt"]), config.flips, rng)
        lq_crop, gt_crop = transforms.random_crop((lq, gt), config.crop, rng)
        seen = lq_crop if config.clip_view == "crop" else lq
        if seen.dtype != np.uint8:  # bytes are seen as they are: a large image is not turned to floats for it
            seen = as_float(seen)
        example = {
            # Copies, so that the whole images' memory is free for the next ones.
            "lq": np.ascontiguousarray(lq_crop),
            "gt": np.ascontiguousarray(gt_crop),
            "task": np.int32(self._task.label),
        }
        if config.clip_size:
            view = transforms.predictor_view(seen, config.clip_size, config.clip_view, config.clip_views)
            example["lq_clip"] = view
        return example

    def _degraded(self, gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image with a degradation of the severities that are configured."""
        severities = self._config.severities
        wide = WIDE.get(self._task.name)
        if wide and (severities == "wide" or (severities == "mixed" and rng.random() < 0.5)):
            return in_8_bits(wide(gt, rng))
        return degrade(gt, self._task, self._config, rng)


def as_batch(examples: Sequence[Example]) -> Batch:
    """Examples as one; images become floats on their way into the batch, in one pass over the memory."""
    batch: Batch = {}
    for name, first in sorted(examples[0].items()):
        values = [example[name] for example in examples]
        if name not in ("lq", "gt"):
            batch[name] = np.stack(values)
            continue
        images = batch[name] = np.empty((len(values), *first.shape), np.float32)
        for place, pixels in zip(images, values, strict=True):
            if pixels.dtype == np.float32:
                place[...] = pixels
            else:
                np.divide(pixels, np.float32(np.iinfo(pixels.dtype).max), out=place)
    return batch


def random_cut(photo: np.ndarray, config: PipelineConfig, rng: np.random.Generator) -> np.ndarray:
    """A random square of the photograph reduced to image_size; the whole photograph where that is 0."""
    if not config.image_size:
        return photo
    side = _cut_side(photo, config, rng.uniform(*config.image_scales))
    # Cut first, then scale: only the pixels that are used are touched.
    (cut,) = transforms.random_crop((photo,), side, rng)
    return transforms.resize(cut, config.image_size, config.image_size)


def centre_cut(photo: np.ndarray, config: PipelineConfig) -> np.ndarray:
    """The middle of the photograph at the mean of the training scales, as float32."""
    size = config.image_size or config.crop
    scale = sum(config.image_scales) / 2 if config.image_size else 1.0
    (cut,) = transforms.centre_crop((photo,), _cut_side(photo, config, scale))
    return np.ascontiguousarray(as_float(transforms.resize(cut, size, size)))


def _cut_side(photo: np.ndarray, config: PipelineConfig, scale: float) -> int:
    size = config.image_size or config.crop
    return max(size, min(round(size * scale), *photo.shape[:2]))


def degrade(gt: np.ndarray, task: Task, config: PipelineConfig, rng: np.random.Generator) -> np.ndarray:
    """The image with the degradation of a task at the severities of test sets, as float32.

    Raises ValueError for a degradation that changes the shape.
    """
    published = config.degradations.get(task.name)
    synthesise = protocol_named(published) if published else task.synthesise
    lq = np.ascontiguousarray(synthesise(gt, rng), dtype=np.float32)
    if lq.shape != gt.shape:
        raise ValueError(f"the degradation of {task.name} changed the shape from {gt.shape} to {lq.shape}")
    return in_8_bits(lq)


def in_8_bits(image: np.ndarray) -> np.ndarray:
    """The image rounded to the 256 levels of a file.

    Degraded images come from files. A predictor that learns from unrounded ones takes the steps between levels,
    in an image that is otherwise smooth, for the mark of those degradations that round (here camera noise).
    """
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.float32) / np.float32(255)

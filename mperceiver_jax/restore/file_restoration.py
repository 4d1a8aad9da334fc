"""The work of the restore command on one file: read, restore, write."""

import csv
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.image_encoding import FORMATS, lost_in
from mperceiver_jax.image_files import LoadedImage, read_image, write_image
from mperceiver_jax.image_frames import Frames, check_holds, frames_in, write_frames
from mperceiver_jax.image_metadata import with_settings
from mperceiver_jax.restore.jobs import Job
from mperceiver_jax.restore.restorer import Restorer

COLUMNS = ("source", "result", "status", "width", "height", "frames", "seconds", "strength", "degradations", "message")
# Large enough that the time of the network counts, small enough for a few seconds.
_PROBE = 256


class Done(NamedTuple):
    """A file that was restored.

    Attributes:
        width, height: of its image, or of its first frame.
        frames: number of images in it.
        probabilities: of the degradations, in the first frame.
        strength: how much of the restoration was applied, there.
        notes: what of the file is lost, one sentence each.
    """

    width: int
    height: int
    frames: int
    probabilities: Mapping[str, float]
    strength: float
    notes: tuple[str, ...]


def restore_file(
    restorer: Restorer, job: Job, settings: str = "", mask: np.ndarray | None = None, quality: int = 95
) -> Done:
    """Restores a file with all its frames, and writes the results of a job.

    Args:
        settings: how it was restored, which is written into the XMP of the result.
        mask: see `Restorer.restore`.

    Raises:
        OSError, ValueError: the file cannot be read, restored or written.
        jax.errors.JaxRuntimeError, MemoryError: see `memory_message`.
    """
    frames = frames_in(job.source)
    if frames is not None:
        check_holds(job.target, frames)
    images: list[LoadedImage] = []
    probabilities: dict[str, float] = {}
    strength, first = 1.0, None
    for image in frames or [read_image(job.source)]:
        result = restorer.restore(image, mask)
        assert isinstance(result.image, LoadedImage)
        if first is None:
            first, probabilities, strength = image, result.probabilities, result.strength
        images.append(result.image)
    assert first is not None
    images[0] = replace(images[0], metadata=replace(first.metadata, xmp=with_settings(first.metadata.xmp, settings)))
    _write(job.target, images, frames, restorer, quality)
    if job.sheet is not None:
        write_image(job.sheet, _side_by_side(first, images[0]), restorer.settings.rounding)
    height, width = first.pixels.shape[:2]
    notes = first.notes
    if (kind := FORMATS.get(job.target.suffix.lower())) is not None:
        notes += lost_in(kind, first.bits, first.alpha is not None, first.metadata)
    return Done(width, height, len(images), probabilities, strength, notes)


def _write(target: Path, images: list[LoadedImage], frames: Frames | None, restorer: Restorer, quality: int) -> None:
    if frames is None and target.suffix.lower() in FORMATS:
        write_image(target, images[0], restorer.settings.rounding, quality)
    else:
        single = Frames(target, 1, pages=False, durations=(0,))
        write_frames(target, images, frames or single, restorer.settings.rounding, quality)


def dry_run_line(restorer: Restorer, job: Job, seconds_per_pixel: float) -> str:
    """What would be done with a file, in a line: size, tiles, degradations, seconds.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    frames = frames_in(job.source)
    image = next(iter(frames)) if frames else read_image(job.source)
    height, width = image.pixels.shape[:2]
    count = frames.count if frames else 1
    tiles = restorer.tile_count(height, width)
    rows, columns = restorer.padded_size(height, width)
    seconds = seconds_per_pixel * rows * columns * tiles * count
    parts = [f"{width}x{height}"]
    if count > 1:
        parts.append(f"{count} frames")
    parts += [f"{tiles} tiles of {columns}x{rows}" if tiles > 1 else "as a whole", likely(restorer.predict(image))]
    return f"{job.source} -> {job.target}  " + "  ".join([*(part for part in parts if part), f"about {seconds:.1f} s"])


def seconds_per_pixel(restorer: Restorer) -> float:
    """Measured on a grey image of 256 x 256 pixels, without compiling."""
    probe = np.full((_PROBE, _PROBE, 3), 0.5, np.float32)
    restorer.restore(probe)
    started = time.perf_counter()
    restorer.restore(probe)
    rows, columns = restorer.padded_size(_PROBE, _PROBE)
    return (time.perf_counter() - started) / (rows * columns)


def likely(probabilities: Mapping[str, float], most: int = 3) -> str:
    """The degradations above one per cent, most probable first: 'rain 93 %, snow 5 %'."""
    titles = {task.name: task.title for tasks in TASK_SETS.values() for task in tasks}
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])[:most]
    shown = [f"{titles.get(name, name)} {value:.0%}" for name, value in ranked if value >= 0.01]
    return ", ".join(shown).replace("%", " %")


def memory_message(error: Exception) -> str:
    """What to do about a device that failed: each kind of device says in words of its own that memory is short."""
    if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
        return "needs more memory than the device has; restore it in tiles (--tile=512 or less), or reduce it"
    return f"the device failed: {error}"


DEVICE_ERRORS = (jax.errors.JaxRuntimeError, MemoryError)


class Table:
    """A CSV file with a row for each image that was tried; rows of earlier calls stay.

    Args:
        path: None writes nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path

    def add(self, job: Job, done: Done | None, seconds: float, message: str = "") -> None:
        """A row: restored, or failed with the reason."""
        if self._path is None:
            return
        row: list[object] = [job.source, job.target, "failed" if done is None else "restored"]
        if done is None:
            row += ["", "", "", f"{seconds:.1f}", "", "", message]
        else:
            shares = " ".join(f"{name}={value:.3f}" for name, value in done.probabilities.items() if value >= 0.001)
            row += [done.width, done.height, done.frames, f"{seconds:.1f}", f"{done.strength:.3g}", shares]
            row.append("; ".join(done.notes))
        fresh = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(COLUMNS)
            writer.writerow([os.fspath(one) if isinstance(one, Path) else one for one in row])


def _side_by_side(degraded: LoadedImage, restored: LoadedImage) -> LoadedImage:
    """Both images with a white gap between them, opaque."""
    gap = np.ones((degraded.pixels.shape[0], 8, 3), np.float32)
    return replace(restored, pixels=np.concatenate([degraded.pixels, gap, restored.pixels], 1), alpha=None)

"""How fast each degradation is: seconds of one core for a megapixel, and images a second at 512 pixels.

    python -m benchmarks.degradations
    python -m benchmarks.degradations --only=mioir,real_esrgan --images=32

Processor time of one thread is measured, so that a busy machine does not count; set OMP_NUM_THREADS=1, or the
other threads of a matrix product would not count either. A degradation under 20 images a
second and core is marked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.degradations.protocols import PROTOCOLS
from data_pipelines.files import write_atomically
from data_pipelines.images import as_float
from data_pipelines.sources.folders import ImageFolder, bundled_photos
from data_pipelines.tasks import TASKS

SLOW = 20.0


def measure(images: int, size: int, only: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Name -> seconds per image and megapixel, images a second; over photographs of size x size.

    Every degradation meets the same images, each with a seed of its own; in turns, so that a change of the
    machine's speed meets them all.
    """
    chosen: dict[str, Callable] = {f"task {task.name}": task.synthesise for task in TASKS}
    chosen |= PROTOCOLS
    chosen = {name: make for name, make in chosen.items() if not only or any(part in name for part in only)}
    if not chosen:
        raise ValueError(f"--only={','.join(only)} names none of {', '.join([*PROTOCOLS])} or the tasks")
    source = ImageFolder(bundled_photos("train"))
    seconds = dict.fromkeys(chosen, 0.0)
    for index in range(-1, images):  # the first turn only warms up
        pixels = source[index % len(source)]["image"]
        tiled = np.pad(pixels, [(0, max(0, size - side)) for side in pixels.shape[:2]] + [(0, 0)], mode="symmetric")
        image = as_float(np.ascontiguousarray(tiled[:size, :size]))
        for name, make in chosen.items():
            began = time.thread_time()
            make(image, np.random.default_rng([0, max(index, 0)]))
            if index >= 0:
                seconds[name] += time.thread_time() - began
    each = {name: total / images for name, total in seconds.items()}
    return {
        name: {
            "seconds": value,
            "seconds_per_megapixel": value / (size * size / 1e6),
            "images_per_second": 1 / value,
        }
        for name, value in each.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.degradations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=16, help="for each degradation (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (default: %(default)s)")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write everything there")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.size < 64:
        parser.error("--images: at least 1; --size: at least 64")
    try:
        found = measure(options.images, options.size, [part for part in options.only.split(",") if part])
    except ValueError as error:
        parser.error(str(error))
    print(f"one core, {options.size} px, mean of {options.images} photographs")
    for name, figures in sorted(found.items(), key=lambda item: -item[1]["seconds"]):
        slow = f"  under {SLOW:.0f}" if figures["images_per_second"] < SLOW else ""
        per_megapixel = figures["seconds_per_megapixel"] * 1e3
        print(f"  {name:<24} {per_megapixel:8.1f} ms/MP  {figures['images_per_second']:7.1f} images/s{slow}")
    if options.output is not None:
        write_atomically(
            options.output,
            json.dumps({"size": options.size, "images": options.images, "results": found}, indent=2).encode(),
        )


if __name__ == "__main__":
    main()

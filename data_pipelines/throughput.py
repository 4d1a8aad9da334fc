"""Command: how many training images a second the pipeline makes on this machine.

python -m data_pipelines.throughput --image_size=128 --crop=128
"""

from __future__ import annotations

import argparse
import dataclasses
import time

from data_pipelines.config import PipelineConfig
from data_pipelines.messages import printable
from data_pipelines.pipeline import train_batches


def throughput(config: PipelineConfig, batches: int = 20) -> float:
    """Images per second over `batches` batches of one host, after a first one that starts threads and
    workers.

    Photographs are decoded when first needed, so with a cache the figure grows with `batches`.
    """
    if batches < 1:
        raise ValueError(f"batches must be at least 1, not {batches}")
    with train_batches(config) as stream:
        next(stream)
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        return batches * config.batch_size / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures and prints one line."""
    parser = argparse.ArgumentParser("python -m data_pipelines.throughput", description=throughput.__doc__)
    parser.add_argument("--batches", type=int, default=20, help="batches to time")
    defaults = PipelineConfig(crop=128, image_size=128, image_scales=(1.0, 4.0))
    for name in ("batch_size", "crop", "image_size", "clip_size", "threads", "prefetch", "workers", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--images", default="", help="folder of clean photographs (default: the bundled)")
    parser.add_argument("--task", action="append", help="only this task; may be given several times")
    given = vars(parser.parse_args(arguments))
    batches, names = given.pop("batches"), given.pop("task") or []
    config = dataclasses.replace(defaults, **given, weights=dict.fromkeys(names, 1.0))
    try:
        rate = throughput(config, batches)
    except (OSError, ValueError) as error:
        parser.exit(2, printable(f"{parser.prog}: {error}\n"))
    print(
        f"{rate:.0f} images/s ({batches} batches of {config.batch_size}, image {config.image_size}, "
        f"crop {config.crop}, CLIP view {config.clip_size}, {config.threads} threads, "
        f"{config.workers} workers, tasks: {', '.join(names) or 'all'})"
    )


if __name__ == "__main__":
    main()

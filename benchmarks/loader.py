"""How fast training batches come from paired data, against only decoding the same images, in one run.

    python -m benchmarks.loader                               1280x720 JPEG pairs made from the bundled photographs
    python -m benchmarks.loader --format=png --width=600 --height=400
    python -m benchmarks.loader --source=/data/prepared/gopro:train

A pair is decoded whole, then cropped to 512 pixels, shown to CLIP as a whole, and put in a batch. Processor time
of one thread is measured, decoding and loading in turns; the wall time of as many threads as cores is reported too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.config import PipelineConfig
from data_pipelines.datasets.layouts import layout_named
from data_pipelines.datasets.pack import prepare
from data_pipelines.datasets.pairing import find
from data_pipelines.datasets.splits import Rule, Split
from data_pipelines.datasets.tree import Tree
from data_pipelines.files import write_atomically
from data_pipelines.pipeline import train_batches
from data_pipelines.sources.folders import ImageFolder, bundled_photos
from data_pipelines.sources.spec import Source, open_source


def made_pairs(folder: Path, count: int, width: int, height: int, kind: str) -> str:
    """Prepares `count` pairs of the size, made of the bundled photographs; returns the source's name."""
    photos = ImageFolder(bundled_photos("train"))
    for k in range(count):
        pixels = photos[k % len(photos)]["image"]
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        for side, level in (("gt", 0), ("lq", 12)):
            noise = np.random.default_rng(k).normal(0, level, (height, width, 3)) if level else 0
            path = folder / "pairs" / side / f"{k}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(path, quality=92)  # PNG has no quality and does not mind
    tree = Tree(folder / "pairs")
    found = find(tree, Split("train", 0, (Rule("lq/{name}", "gt/{name}"),)))
    prepare(layout_named("pairs"), "derain", [found], tree, folder / "prepared")
    # Repeated, because shuffling a handful of indices is slower than shuffling thousands.
    return f"{folder / 'prepared'}:train*{1 + 2000 // count}"


def measure(name: str, *, crop: int, batch: int, rounds: int, clip_size: int) -> dict[str, float]:
    """Pairs a second: of one core (decoding only, loading), and of the whole machine; and their ratios."""
    source = open_source(name)
    cores = os.cpu_count() or 1
    spent = {"decode": 0.0, "load": 0.0}
    config = PipelineConfig(
        batch_size=batch,
        crop=crop,
        clip_size=clip_size,
        flips="none",
        threads=0,
        cache_megabytes=0,
        weights={"derain": 1.0},
        pairs={"derain": {"source": name}},
    )
    with train_batches(config) as stream:
        next(stream)
        source[0]
        for turn in range(rounds):
            began = time.thread_time()
            for k in range(batch):
                source[(turn * batch + k) % len(source)]
            spent["decode"] += time.thread_time() - began
            began = time.thread_time()
            next(stream)
            spent["load"] += time.thread_time() - began
    pairs = rounds * batch
    result = {f"{what}_pairs_per_second_of_a_core": pairs / seconds for what, seconds in spent.items()}
    result["load_over_decode"] = spent["load"] / spent["decode"]
    result["decode_pairs_per_second"] = pairs / _wall_of_decoding(source, pairs, cores)
    with train_batches(dataclasses.replace(config, threads=cores, prefetch=2)) as stream:
        for _ in range(3):  # what was prefetched is not counted
            next(stream)
        began = time.perf_counter()
        for _ in range(rounds):
            next(stream)
        result["load_pairs_per_second"] = pairs / (time.perf_counter() - began)
    result["wall_ratio"] = result["decode_pairs_per_second"] / result["load_pairs_per_second"]
    return result


def _wall_of_decoding(source: Source, pairs: int, threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        # Only that it was decoded comes back.
        list(pool.map(lambda k: len(source[k % len(source)]), range(pairs)))
        return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.loader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="", help="pairs as data.pairs.TASK.source takes them")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the pairs made (%(default)s)")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--pairs", type=int, default=24, help="pairs to make (%(default)s)")
    parser.add_argument("--crop", type=int, default=512, help="side of the crops (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a batch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="batches timed (%(default)s)")
    parser.add_argument("--clip-size", type=int, default=224, help="side of CLIP's view, 0: none (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the figures there")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.batch, options.pairs) < 1:
        parser.error("--rounds, --batch and --pairs: at least 1")
    try:
        with tempfile.TemporaryDirectory() as folder:
            name = options.source or made_pairs(
                Path(folder), options.pairs, options.width, options.height, options.format
            )
            found = measure(
                name, crop=options.crop, batch=options.batch, rounds=options.rounds, clip_size=options.clip_size
            )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    what = options.source or f"{options.width}x{options.height} {options.format}"
    print(f"pairs of {what}, crops of {options.crop}, batches of {options.batch}")
    of_core = "_pairs_per_second_of_a_core"
    print(
        f"  one core: decoding {found['decode' + of_core]:.1f} pairs/s, loading {found['load' + of_core]:.1f} pairs/s, "
        f"{found['load_over_decode']:.2f} x the time"
    )
    print(
        f"  {os.cpu_count()} threads: decoding {found['decode_pairs_per_second']:.1f} pairs/s, "
        f"loading {found['load_pairs_per_second']:.1f} pairs/s, {found['wall_ratio']:.2f} x the wall time"
    )
    if options.output is not None:
        write_atomically(options.output, json.dumps(found, indent=2).encode())


if __name__ == "__main__":
    main()

"""What tiles cost and how much they change: seconds and memory by size, and brightness against the whole image.

    python -m benchmarks.tiles --megapixels=0.25,1,4,12      seconds, seconds per megapixel, memory
    python -m benchmarks.tiles --brightness                  tiles of 256 and 512 pixels against the whole image

Seconds are those of a second image of the same size, whose programs are compiled. Memory is the largest resident set
of a process of its own, reading and writing left out.
"""

import argparse
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter

from mperceiver_jax.compile_cache import use_compile_cache
from mperceiver_jax.restore import Restorer, RestoreSettings

WINDOW = 31
"""Side of the squares over which brightness is averaged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="base", help="weights of this package, or a workdir")
    parser.add_argument("--megapixels", default="0.25,1,4", help="sizes of the images, separated by commas")
    parser.add_argument("--brightness", action="store_true", help="compare tiles with the whole image instead")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # One size, in this process.
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    use_compile_cache()
    if options.brightness:
        compare_brightness(options.checkpoint)
    elif options.one:
        print(measure(options.checkpoint, options.one), flush=True)
    else:
        print("| image | in tiles of | seconds | seconds per megapixel | memory |\n| --- | --- | ---: | ---: | ---: |")
        for size in options.megapixels.split(","):
            command = [sys.executable, "-m", "benchmarks.tiles", f"--checkpoint={options.checkpoint}", f"--one={size}"]
            subprocess.run(command, check=True)


def measure(checkpoint: str, megapixels: float) -> str:
    """A row of the table, for an image of 4:3 with noise."""
    restorer = Restorer.from_checkpoint(checkpoint)
    width = round((megapixels * 2**20 * 4 / 3) ** 0.5)
    height = round(megapixels * 2**20 / width)
    image = noisy(np.full((height, width, 3), 0.5))
    with LargestResidentSet() as memory:
        restorer.restore(image)
        started = time.perf_counter()
        restorer.restore(image)
        seconds = time.perf_counter() - started
    rows, columns = restorer.padded_size(height, width)
    count = restorer.tile_count(height, width)
    tiles = f"{count} x {columns}x{rows}" if count > 1 else "the whole"
    per_megapixel = seconds / (height * width / 2**20)
    return f"| {width}x{height} | {tiles} | {seconds:.1f} | {per_megapixel:.1f} | {memory.gigabytes:.2f} GB |"


def compare_brightness(checkpoint: str) -> None:
    """Prints the largest difference of means over squares, in levels of 255."""
    height, width = 640, 960
    sky = np.full((height, width, 3), (0.45, 0.62, 0.85))
    sky[height // 2 :] = np.random.default_rng(1).random((height // 2, width, 3)) / 2
    scenes = {"gradient": np.linspace(0.25, 0.75, width)[None, :, None] * np.ones((height, 1, 3)), "flat sky": sky}
    whole = Restorer.from_checkpoint(checkpoint, RestoreSettings(tile=0))
    for side in (256, 512):
        tiled = Restorer.from_checkpoint(checkpoint, RestoreSettings(tile=side))
        for name, scene in scenes.items():
            image = noisy(scene)
            difference = (np.asarray(tiled(image)) - np.asarray(whole(image))).mean(-1)
            largest = 255 * np.abs(uniform_filter(difference, WINDOW)).max()
            print(f"{name}, tiles of {side}: {largest:.2f} levels", flush=True)


def noisy(image: np.ndarray) -> np.ndarray:
    """The image with Gaussian noise of ten levels, float32 in [0, 1]."""
    return (image + np.random.default_rng(0).normal(0, 10 / 255, image.shape)).clip(0, 1).astype(np.float32)


class LargestResidentSet:
    """Polls the memory of this process for the time of a block; Linux only.

    Attributes:
        gigabytes: the largest resident set that was seen.
    """

    gigabytes = 0.0

    def __enter__(self) -> "LargestResidentSet":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._ended.wait(0.02):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.gigabytes = max(self.gigabytes, pages * 4096 / 1e9)


if __name__ == "__main__":
    main()

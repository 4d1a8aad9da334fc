"""The restore command: files and folders in, PNG files out. `python -m mperceiver_jax.restore --help`."""

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mperceiver_jax.interrupts  # noqa: F401  (before the imports that take seconds)
from data_pipelines.files import check_writable
from data_pipelines.messages import print_line, printable, shorten_list
from data_pipelines.tasks import TASK_SETS, TASKS
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.image_files import LoadedImage, read_image, write_image
from mperceiver_jax.restore.example import write_example
from mperceiver_jax.restore.jobs import Job, plan

if TYPE_CHECKING:
    from mperceiver_jax.restore import Restorer

EXAMPLES = """\
examples:
  one image, with the weights of this package
    python -m mperceiver_jax.restore rainy.jpg --output=restored
  no image at hand: a photograph of this package with noise
    python -m mperceiver_jax.restore --example=denoise --output=restored --side-by-side
  one image, with the model that `make run` trained
    python -m mperceiver_jax.restore rainy.jpg --checkpoint=runs/small --output=restored
  weights of a repository of the Hugging Face hub
    python -m mperceiver_jax.restore rainy.jpg --checkpoint=hf://OWNER/NAME --output=restored
  a folder and its subfolders, with comparisons
    python -m mperceiver_jax.restore photos/ --recursive --checkpoint=DIR --output=restored --side-by-side
  a model that takes the degradation as input, and large images in tiles
    python -m mperceiver_jax.restore rain/ --checkpoint=runs/pip --output=dry --task=derain --tile=512
  the same, with the degradation from MPerceiver's predictor
    python -m mperceiver_jax.restore mixed/ --checkpoint=runs/pip --output=clean --predictor=runs/small
  fewer steps: faster, less precise; a solver of second order loses least
    python -m mperceiver_jax.restore photos/ --checkpoint=DIR --output=quick --sampler=dpmpp_2m --steps=15

Results are PNG files named like the originals, with the same size, alpha channel, bit depth and colour
profile. Images that cannot be read are named at the end and do not stop the others. Results that exist are
kept, so that the same command continues a call that was interrupted.

The first image of every size is compiled, which takes longest; sizes are rounded up, so images of one
camera share a program. JAX_COMPILATION_CACHE_DIR=DIR keeps the programs for the next call.

exit status: 0 all restored; 1 some were not; 2 nothing was started; the message says why.
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m mperceiver_jax.restore",
        description="Restore degraded images of any size with a trained model. The degradation of each "
        "image (haze, rain, blur, noise, ...) is predicted, printed, and corrected.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("inputs", nargs="*", metavar="INPUT", help="an image, or a folder of images")
    result.add_argument(
        "--example",
        choices=[task.name for task in TASKS],
        nargs="?",
        const="denoise",
        help="restore a photograph of this package that no model was trained on, degraded so (default: denoise)",
    )
    result.add_argument(
        "--checkpoint",
        default=DEFAULT_WEIGHTS,
        metavar="MODEL",
        help="workdir of a training run, a folder of released weights, weights of this package by name, or "
        "hf://OWNER/NAME on the Hugging Face hub (default: %(default)s, of this package)",
    )
    result.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results, made if need be"
    )
    result.add_argument("--recursive", action="store_true", help="search folders to any depth")
    result.add_argument("--overwrite", action="store_true", help="restore again what was restored already")
    result.add_argument(
        "--side-by-side",
        action="store_true",
        help="also write NAME_side_by_side.png: degraded left, restored right",
    )
    result.add_argument(
        "--sampler",
        choices=("ddim", "reference", "dpmpp_2m"),
        help="ddim: the correct schedule; reference: exactly the public release's; dpmpp_2m: DPM-Solver++, made "
        "for 10 to 25 steps (default: as configured)",
    )
    result.add_argument("--steps", type=int, metavar="N", help="steps of the sampler (default: as configured)")
    result.add_argument(
        "--seed",
        type=int,
        default=42,
        metavar="N",
        help="of the starting noise; the same seed gives the same results (default: %(default)s)",
    )
    result.add_argument(
        "--no-refine",
        dest="refine",
        action="store_false",
        help="decode without the detail refinement module",
    )
    result.add_argument(
        "--colour",
        choices=("none", "adain", "wavelet"),
        default="none",
        help="give results the colours of the original, by its statistics or its low frequencies; not for "
        "haze and low light, which are degradations of colour (default: %(default)s)",
    )
    result.add_argument(
        "--rounding",
        choices=("round", "truncate"),
        default="round",
        help="to whole levels; truncate is what the public release does (default: %(default)s)",
    )
    result.add_argument(
        "--task",
        metavar="NAME",
        help="what to restore, as in derain, for models that take the degradation as input; else it is predicted",
    )
    result.add_argument(
        "--predictor",
        metavar="MODEL",
        help="an MPerceiver as in --checkpoint, whose predictor gives such a model the degradation, in place of its "
        "own classifier",
    )
    result.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="restore in tiles of N x N pixels, for images that need more memory than there is; 0: whole images "
        "(default: tiles for large images where the model has no attention over the whole image)",
    )
    result.add_argument(
        "--overlap", type=int, default=64, metavar="N", help="pixels that tiles share (default: %(default)s)"
    )
    result.add_argument(
        "--weights",
        choices=("ema", "last"),
        help="the moving averages, or the last parameters (default: the averages of the stages that keep one)",
    )
    result.add_argument(
        "--pretrained",
        type=Path,
        metavar="PATH",
        help="the published weights that the training started from, if they have moved since",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.example:
            options.inputs.append(write_example(options.example, options.output))
        if not options.inputs:
            raise ValueError("name an image or a folder of images, or give --example")
        jobs, done, left_out = plan(
            options.inputs,
            options.output,
            recursive=options.recursive,
            side_by_side=options.side_by_side,
            overwrite=options.overwrite,
        )
        _announce(done, left_out)
        if not jobs:
            return 0
        check_writable(options.output)
        restorer = _load(options)
        options.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        print_line(f"restore: {error}", error=True)
        return 2
    try:
        failures = _restore_all(restorer, jobs)
    except KeyboardInterrupt:
        print(
            "restore: interrupted; the results written so far are complete, and the same command restores the rest",
            file=sys.stderr,
        )
        return 130
    if failures:
        print(f"restore: {len(failures)} of {len(jobs)} images could not be restored:", file=sys.stderr)
        for job, reason in failures:
            print_line(f"  {job.source}: {reason}", error=True)
    return 1 if failures else 0


def _announce(done: Sequence[Job], left_out: Sequence[Path]) -> None:
    if done:
        print(
            f"results that exist already and are kept: {len(done)}; --overwrite restores these images again", flush=True
        )
    if left_out:
        print_line(f"left out, no images: {shorten_list(left_out)}")


def _load(options: argparse.Namespace) -> "Restorer":
    # Not before the files are known to be in order: JAX takes seconds to start.
    from mperceiver_jax.restore.opening import open_restorer

    restorer = open_restorer(
        options, colour=options.colour, rounding=options.rounding, tile=options.tile, overlap=options.overlap
    )
    sampler = restorer.sampler
    how = "one pass for each image"
    if sampler:
        how = f"{sampler.name}, {sampler.steps} step{'s' * (sampler.steps != 1)}, seed {restorer.settings.seed}"
    print_line(f"{options.checkpoint}: {restorer.weight_kind}, {how}")
    return restorer


def _restore_all(restorer: "Restorer", jobs: Sequence[Job]) -> list[tuple[Job, str]]:
    """Restores every image; returns those that could not be restored, with the reason."""
    import jax

    from mperceiver_jax.progress import progress_bar

    failures: list[tuple[Job, str]] = []
    compiled: set[tuple[int, int]] = set()
    with progress_bar("restoring", len(jobs)) as bar:
        for job in jobs:
            started = time.perf_counter()
            try:
                image = read_image(job.source)
                for note in image.notes:
                    bar.write(printable(f"warning: {job.source}: {note}"), file=sys.stderr)
                height, width = image.pixels.shape[:2]
                restored, probabilities = restorer.restore(image)
                assert isinstance(restored, LoadedImage)
                write_image(job.target, restored, restorer.settings.rounding)
                if job.sheet is not None:
                    write_image(job.sheet, _side_by_side(image, restored), restorer.settings.rounding)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                failures.append((job, _memory(error)))
            except (OSError, ValueError) as error:
                failures.append((job, str(error)))
            else:
                seconds = f"{time.perf_counter() - started:.1f} s"
                if (size := restorer.padded_size(height, width)) not in compiled:
                    compiled.add(size)
                    seconds += " with compiling"
                seen = [f"{width}x{height}", _likely(probabilities), seconds]
                line = "  ".join([str(job.target), *(part for part in seen if part)])
                bar.write(printable(line), file=sys.stdout)
                sys.stdout.flush()
            bar.update(1)
    return failures


def _likely(probabilities: Mapping[str, float], most: int = 3) -> str:
    """The degradations above one per cent, most probable first: 'rain 93 %, snow 5 %'."""
    titles = {task.name: task.title for tasks in TASK_SETS.values() for task in tasks}
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])[:most]
    shown = [f"{titles.get(name, name)} {value:.0%}" for name, value in ranked if value >= 0.01]
    return ", ".join(shown).replace("%", " %")


def _side_by_side(degraded: LoadedImage, restored: LoadedImage) -> LoadedImage:
    """Both images with a white gap between them, opaque."""
    gap = np.ones((degraded.pixels.shape[0], 8, 3), np.float32)
    return replace(restored, pixels=np.concatenate([degraded.pixels, gap, restored.pixels], 1), alpha=None)


def _memory(error: Exception) -> str:
    # Each kind of device says it in words of its own.
    if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
        return "needs more memory than the device has; restore it in tiles (--tile=512 or less), or reduce it"
    return f"the device failed: {error}"


if __name__ == "__main__":
    sys.exit(main())

"""The restore command: files and folders in, image files out. `python -m mperceiver_jax.restore --help`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mperceiver_jax.interrupts  # noqa: F401  (before the imports that take seconds)
from data_pipelines.files import check_writable
from data_pipelines.messages import print_line, printable, shorten_list
from mperceiver_jax.image_files import read_image
from mperceiver_jax.restore.example import write_example
from mperceiver_jax.restore.jobs import Job, Plan, plan
from mperceiver_jax.restore.options import as_text, parser, settings_of

if TYPE_CHECKING:
    from mperceiver_jax.restore import Restorer

TABLE = "restored.csv"
_POLL_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.example:
            options.inputs.append(write_example(options.example, options.output))
        _check(options)
        mask = None if options.mask is None else read_image(options.mask).pixels[..., 0]
        jobs, done, left_out = _plan(options)
        _announce(done, left_out)
        if not jobs and not options.watch:
            return 0
        if not options.dry_run:
            check_writable(options.output)
        restorer = _load(options)
        if options.dry_run:
            return _expect(restorer, jobs)
        options.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        print_line(f"restore: {error}", error=True)
        return 2
    try:
        failures = _restore_all(restorer, jobs, options, mask)
        if options.watch:
            _watch(restorer, options, mask, {job.source: _state(job.source) for job, _ in failures})
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


def _check(options: argparse.Namespace) -> None:
    if not options.inputs:
        raise ValueError("name an image or a folder of images, or give --example")
    if not 1 <= options.quality <= 100:
        raise ValueError(f"--quality: between 1 and 100, not {options.quality}")
    if options.watch and not any(Path(given).is_dir() for given in options.inputs):
        raise ValueError("--watch: name a folder to be watched")


def _plan(options: argparse.Namespace) -> Plan:
    return plan(
        options.inputs,
        options.output,
        recursive=options.recursive,
        side_by_side=options.side_by_side,
        overwrite=options.overwrite,
        kind=options.format,
    )


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

    restorer = open_restorer(options, **settings_of(options))
    sampler = restorer.sampler
    how = "one pass for each image"
    if sampler:
        how = f"{sampler.name}, {sampler.steps} step{'s' * (sampler.steps != 1)}, seed {restorer.settings.seed}"
    print_line(f"{options.checkpoint}: {restorer.weight_kind}, {how}")
    return restorer


def _expect(restorer: "Restorer", jobs: Sequence[Job]) -> int:
    """Prints what would be done; returns the exit status."""
    from mperceiver_jax.restore.file_restoration import expect, seconds_per_pixel

    per_pixel, status = seconds_per_pixel(restorer), 0
    for job in jobs:
        try:
            print_line(expect(restorer, job, per_pixel))
        except (OSError, ValueError) as error:
            status = 1
            print_line(f"{job.source}: {error}", error=True)
    return status


def _restore_all(
    restorer: "Restorer", jobs: Sequence[Job], options: argparse.Namespace, mask: np.ndarray | None
) -> list[tuple[Job, str]]:
    """Restores every image; returns those that could not be restored, with the reason."""
    from mperceiver_jax.progress import progress_bar
    from mperceiver_jax.restore.file_restoration import DEVICE_ERRORS, Table, likely, memory_message, restore_file

    folder = any(Path(given).is_dir() for given in options.inputs)
    table = Table(options.csv or (options.output / TABLE if folder else None))
    settings, failures = as_text(options), []
    compiled: set[tuple[int, int]] = set()
    with progress_bar("restoring", len(jobs)) as bar:
        for job in jobs:
            started = time.perf_counter()
            try:
                done = restore_file(restorer, job, settings, mask, options.quality)
            except (*DEVICE_ERRORS, OSError, ValueError) as error:
                reason = memory_message(error) if isinstance(error, DEVICE_ERRORS) else str(error)
                failures.append((job, reason))
                table.add(job, None, time.perf_counter() - started, reason)
            else:
                for note in done.notes:
                    bar.write(printable(f"warning: {job.source}: {note}"), file=sys.stderr)
                seconds = f"{time.perf_counter() - started:.1f} s"
                if (size := restorer.padded_size(done.height, done.width)) not in compiled:
                    compiled.add(size)
                    seconds += " with compiling"
                many = f"{done.frames} frames" if done.frames > 1 else ""
                weaker = f"strength {done.strength:.2g}" if done.strength < 1 else ""
                seen = [f"{done.width}x{done.height}", many, likely(done.probabilities), weaker, seconds]
                line = "  ".join([str(job.target), *(part for part in seen if part)])
                bar.write(printable(line), file=sys.stdout)
                sys.stdout.flush()
                table.add(job, done, time.perf_counter() - started)
            bar.update(1)
    return failures


def _watch(
    restorer: "Restorer", options: argparse.Namespace, mask: np.ndarray | None, failed: dict[Path, tuple[float, int]]
) -> None:
    """Restores images that arrive in the folders, until the process is interrupted.

    A file is taken once it has not changed for two seconds. One that failed is tried again when it has changed.
    """
    print("watching for further images; Ctrl-C ends it", flush=True)
    before: dict[Path, tuple[float, int]] = {}
    options.overwrite = False
    while True:
        time.sleep(_POLL_SECONDS)
        try:
            jobs = _plan(options).jobs
        except (OSError, ValueError):
            continue  # A folder without images, or one that is being moved.
        now = {job.source: _state(job.source) for job in jobs}
        ready = [job for job in jobs if before.get(job.source) == now[job.source] != failed.get(job.source)]
        before = now
        for job, reason in _restore_all(restorer, ready, options, mask) if ready else []:
            failed[job.source] = now[job.source]
            print_line(f"{job.source}: {reason}", error=True)


def _state(path: Path) -> tuple[float, int]:
    """Time of the last change and size; zeros for a file that is gone."""
    try:
        found = path.stat()
    except OSError:
        return 0.0, 0
    return found.st_mtime, found.st_size


if __name__ == "__main__":
    sys.exit(main())

"""A call of the restore command once its files are known to be in order: all images, a dry run, or watching folders."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.messages import print_line, printable
from mperceiver_jax.progress import progress_bar
from mperceiver_jax.restore.file_restoration import (
    DEVICE_ERRORS,
    Table,
    dry_run_line,
    likely,
    memory_message,
    restore_file,
    seconds_per_pixel,
)
from mperceiver_jax.restore.jobs import Job
from mperceiver_jax.restore.opening import open_restorer
from mperceiver_jax.restore.options import as_text, plan_of, settings_of
from mperceiver_jax.restore.restorer import Restorer

TABLE = "restored.csv"
_POLL_SECONDS = 2.0


def load(options: argparse.Namespace) -> Restorer:
    """Opens the model that the options name, and prints how it restores. Raises as `open_restorer`."""
    restorer = open_restorer(options, **settings_of(options))
    sampler = restorer.sampler
    how = "one pass for each image"
    if sampler:
        how = f"{sampler.name}, {sampler.steps} step{'s' * (sampler.steps != 1)}, seed {restorer.settings.seed}"
    print_line(f"{options.checkpoint}: {restorer.weight_kind}, {how}")
    return restorer


def dry_run(restorer: Restorer, jobs: Sequence[Job]) -> int:
    """Prints what would be done; returns the exit status."""
    per_pixel, status = seconds_per_pixel(restorer), 0
    for job in jobs:
        try:
            print_line(dry_run_line(restorer, job, per_pixel))
        except (OSError, ValueError) as error:
            status = 1
            print_line(f"{job.source}: {error}", error=True)
    return status


def restore_all(
    restorer: Restorer, jobs: Sequence[Job], options: argparse.Namespace, mask: np.ndarray | None
) -> list[tuple[Job, str]]:
    """Restores every image; returns those that could not be restored, with the reason."""
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


def watch(
    restorer: Restorer, options: argparse.Namespace, mask: np.ndarray | None, failures: Sequence[tuple[Job, str]]
) -> None:
    """Restores images that arrive in the folders, until the process is interrupted.

    A file is taken once it has not changed for two seconds. One that failed is tried again when it has changed.
    """
    failed = {job.source: _state(job.source) for job, _ in failures}
    print("watching for further images; Ctrl-C ends it", flush=True)
    before: dict[Path, tuple[float, int]] = {}
    options.overwrite = False
    while True:
        time.sleep(_POLL_SECONDS)
        try:
            jobs = plan_of(options).jobs
        except (OSError, ValueError):
            continue  # A folder without images, or one that is being moved.
        now = {job.source: _state(job.source) for job in jobs}
        ready = [job for job in jobs if before.get(job.source) == now[job.source] != failed.get(job.source)]
        before = now
        for job, reason in restore_all(restorer, ready, options, mask) if ready else []:
            failed[job.source] = now[job.source]
            print_line(f"{job.source}: {reason}", error=True)


def _state(path: Path) -> tuple[float, int]:
    """Time of the last change and size; zeros for a file that is gone."""
    try:
        found = path.stat()
    except OSError:
        return 0.0, 0
    return found.st_mtime, found.st_size

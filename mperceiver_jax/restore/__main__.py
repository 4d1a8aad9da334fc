"""The restore command: files and folders in, image files out. `python -m mperceiver_jax.restore --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mperceiver_jax.interrupts  # noqa: F401  (before the imports that take seconds)
from data_pipelines.files import check_writable
from data_pipelines.messages import print_line, shorten_list
from mperceiver_jax.image_files import read_image
from mperceiver_jax.restore.example import write_example
from mperceiver_jax.restore.jobs import Job
from mperceiver_jax.restore.options import parser, plan_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.example and options.dry_run:
            raise ValueError("--dry-run writes nothing, and --example an image; give one of them")
        if options.example:
            options.inputs.append(write_example(options.example, options.output))
        _check(options)
        mask = None if options.mask is None else read_image(options.mask).pixels[..., 0]
        jobs, done, left_out = plan_of(options)
        _announce(done, left_out)
        if not jobs and not options.watch:
            return 0
        if not options.dry_run:
            check_writable(options.output)
        # Not before the files are known to be in order: JAX takes seconds to start.
        from mperceiver_jax.restore import running

        restorer = running.load(options)
        if options.dry_run:
            return running.dry_run(restorer, jobs)
        options.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        print_line(f"restore: {error}", error=True)
        return 2
    try:
        failures = running.restore_all(restorer, jobs, options, mask)
        if options.watch:
            running.watch(restorer, options, mask, failures)
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


def _announce(done: Sequence[Job], left_out: Sequence[Path]) -> None:
    if done:
        print(
            f"results that exist already and are kept: {len(done)}; --overwrite restores these images again", flush=True
        )
    if left_out:
        print_line(f"left out, no images: {shorten_list(left_out)}")


if __name__ == "__main__":
    sys.exit(main())

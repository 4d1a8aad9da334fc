"""PSNR and SSIM of a model on native squares of held-out photographs, degradation by degradation.

The squares are those of the trainer's own evaluation, at the severities of test sets and with 256 levels, at any
size. Restored images are clipped, not rounded. A clean image that comes back exactly counts as 100 dB.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from data_pipelines.config import PipelineConfig
from data_pipelines.heldout import heldout_examples
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.evaluate.metrics.full_reference import psnr, ssim
from mperceiver_jax.evaluate.report import table
from mperceiver_jax.restore import Restorer

CLEAN = "clean"
COLUMNS = ["degradation", "PSNR, degraded", "restored", "gain", "SSIM, degraded", "restored", "right predictions"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heldout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default=DEFAULT_WEIGHTS, help="as in restore (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="side of the squares (default: %(default)s)")
    parser.add_argument("--per-task", type=int, default=24, metavar="N", help="squares (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        restorer = Restorer.from_checkpoint(options.model)
        print(table(COLUMNS, rows(restorer, options.size, options.per_task)))
    except (ValueError, OSError) as error:
        print(f"heldout: {error}", file=sys.stderr)
        return 2
    return 0


def rows(restorer: Restorer, size: int, per_task: int) -> list[list[str]]:
    """One row for each degradation that the model knows, and their mean without the clean images."""
    new = {CLEAN: "nearly_clean"} if CLEAN in restorer.task_names else {}
    config = PipelineConfig(
        crop=size, image_size=size, image_scales=(1.0, 2.0), clip_size=0, new_tasks=tuple(new), degradations=new
    )
    found: dict[str, list[list[float]]] = {}
    for example in heldout_examples(config, per_task):
        task = restorer.task_names[example["task"]]
        result, truth = restorer.restore(example["lq"]), example["gt"]
        values = [
            measure(image, truth) for measure in (psnr, ssim) for image in (example["lq"], np.asarray(result.image))
        ]
        predicted = max(result.probabilities, key=lambda name: result.probabilities[name], default=None)
        right = np.nan if predicted is None else predicted == task
        found.setdefault(task, []).append([*(min(value, 100.0) for value in values), float(right)])
    means = {task: np.mean(values, 0) for task, values in found.items()}
    degraded = [values for task, values in means.items() if task != CLEAN]
    return [_row(task, values) for task, values in means.items()] + [_row("**mean**", np.mean(degraded, 0))]


def _row(name: str, values: np.ndarray) -> list[str]:
    before, after, similar_before, similar_after, right = values
    gain = "" if name == CLEAN else f"{after - before:+.2f}"
    similar = [f"{similar_before:.4f}", f"{similar_after:.4f}"]
    share = "–" if np.isnan(right) else f"{right:.0%}".replace("%", " %")
    return [name, f"{before:.2f}", f"{after:.2f}", gain, *similar, share]


if __name__ == "__main__":
    sys.exit(main())

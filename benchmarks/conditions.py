"""How much the predicted degradation matters: gains of MPerceiver with predicted, true and wrong degradations.

For true and wrong degradations the predictor's last layer is replaced, so that it predicts one degradation with
certainty for every image; its embedding is unchanged. A wrong degradation is drawn for each image among all others.
The images are those of `benchmarks.peers`. The gain is in dB over the degraded image, and for clean images the PSNR.
"""

import argparse
import copy
import sys
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from benchmarks.peers import CLEAN, cases
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.evaluate.report import table
from mperceiver_jax.restore import Restorer

LAYER = "predictor.fc2"
CERTAIN = 30.0
COLUMNS = ["degradation", "degraded", "predicted", "true", "wrong", "right predictions"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conditions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_WEIGHTS, help="an MPerceiver, as in restore (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=256, metavar="N", help="side of the images (default: %(default)s)")
    parser.add_argument("--per-task", type=int, default=16, metavar="N", help="images (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        restorer = Restorer.from_checkpoint(options.model)
        if not restorer.backend.predicts:
            raise ValueError(f"{options.model} does not predict the degradation")
        print(table(COLUMNS, rows(restorer, options.size, options.per_task)))
    except (ValueError, OSError) as error:
        print(f"conditions: {error}", file=sys.stderr)
        return 2
    return 0


def certain(restorer: Restorer, label: int) -> Restorer:
    """The same model, with a predictor that predicts one degradation for every image."""
    changed = copy.copy(restorer)
    bias = jnp.zeros_like(restorer.params[f"{LAYER}.bias"]).at[label].set(CERTAIN)
    weight = jnp.zeros_like(restorer.params[f"{LAYER}.weight"])
    changed.params = {**restorer.params, f"{LAYER}.weight": weight, f"{LAYER}.bias": bias}
    return changed


def rows(restorer: Restorer, size: int, per_task: int) -> list[list[str]]:
    """One row for each degradation, and their mean without the clean images."""
    names, rng = restorer.task_names, np.random.default_rng(0)
    gains: dict[str, list[list[float]]] = {}
    for case in cases(size, per_task, "heldout"):
        if case.task not in names:
            continue
        label = names.index(case.task)
        wrong = int(rng.choice([other for other in range(len(names)) if other != label]))
        found = restorer.restore(case.lq)
        images = [np.asarray(found.image), *(certain(restorer, one)(case.lq) for one in (label, wrong))]
        # Clean images have no gain; their PSNR is shown instead.
        before, *after = (min(psnr(image, case.gt), 100.0) for image in (case.lq, *images))
        right = float(max(found.probabilities, key=lambda name: found.probabilities[name]) == case.task)
        gains.setdefault(case.task, []).append(
            [before, *(value - before * (case.task != CLEAN) for value in after), right]
        )
    means = {task: np.mean(values, 0) for task, values in gains.items()}
    degraded = [values for task, values in means.items() if task != CLEAN]
    return [_row(task, values) for task, values in means.items()] + [_row("**mean**", np.mean(degraded, 0))]


def _row(name: str, values: np.ndarray) -> list[str]:
    before, *gains, right = values
    return [name, f"{before:.2f}", *(f"{gain:+.2f}" for gain in gains), f"{right:.0%}".replace("%", " %")]


if __name__ == "__main__":
    sys.exit(main())

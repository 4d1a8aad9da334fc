"""A run as training leaves it, and the weights released from it."""

from pathlib import Path
from typing import NamedTuple

from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.convert.release_command import release
from tests.support.finished_run import finished_run


class ReleasedRun(NamedTuple):
    """The workdir of a run, and the folder of its weights in float16."""

    workdir: Path
    weights: Path


def released_run(root: Path) -> ReleasedRun:
    """Writes both below `root`."""
    made = ReleasedRun(root / "run", root / "weights")
    finished_run(made.workdir)
    release(run_params(made.workdir), made.weights, "float16")
    return made

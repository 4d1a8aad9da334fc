"""The model that the options of a command name: those of `restore` and of `evaluate` have the same names."""

import argparse
import warnings
from typing import Any

from absl import logging

from data_pipelines.messages import print_line
from mperceiver_jax.compile_cache import use_compile_cache
from mperceiver_jax.restore.restorer import Restorer
from mperceiver_jax.restore.settings import RestoreSettings


def open_restorer(options: argparse.Namespace, **settings: Any) -> Restorer:
    """Opens the model, and prints what its user should know as warnings to stderr.

    Args:
        options: with checkpoint, pretrained, predictor, weights, sampler, steps, seed, refine and task.
        settings: further fields of `RestoreSettings`.

    Raises:
        OSError, ValueError, RuntimeError: as `Restorer.from_checkpoint`.
    """
    use_compile_cache()
    shared = {name: getattr(options, name) for name in ("sampler", "steps", "seed", "refine", "task")}
    # Orbax warns that a checkpoint opened for reading is read-only.
    logging.set_verbosity(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        restorer = Restorer.from_checkpoint(
            options.checkpoint,
            RestoreSettings(**shared, **settings),
            pretrained=options.pretrained,
            predictor=options.predictor,
            weights=options.weights,
        )
    for note in restorer.notes:
        print_line(f"warning: {note}", error=True)
    return restorer

"""What is evaluated: a model, or images that any system restored."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.evaluate.protocols.runner import Subject
from mperceiver_jax.restore.batched import BatchedRestorer
from mperceiver_jax.restore.opening import open_restorer


def subject(options: argparse.Namespace, title: str, images: Sequence[Any], mesh: Any, batch_size: int) -> Subject:
    """What the options of the evaluation command name: a model, or a folder of images.

    Args:
        title: in tables.
        images: that are evaluated.

    Raises:
        ValueError, OSError, RuntimeError: a model that cannot be read, or images without a degraded one to restore.
    """
    if options.outputs is not None:
        return Subject(title, {"outputs": str(options.outputs.resolve())})
    if bare := [image.key for image in images if image.lq is None and image.noise is None]:
        raise ValueError(f"there is no degraded image to restore for {bare[0]} ({len(bare)} in all); see --set")
    restorer = open_restorer(options, tile=0)
    identity: dict[str, Any] = {
        "checkpoint": _where(options.checkpoint),
        "weights": fingerprint(restorer.params)[:16],
        "weight kind": restorer.weight_kind,
        "tiles": "none",
    }
    if restorer.sampler is not None:
        identity |= {
            "sampler": restorer.sampler.name,
            "steps": restorer.sampler.steps,
            "seed": restorer.settings.seed,
            "refined": restorer.settings.refine,
        }
    if options.task:
        identity["task"] = options.task
    if restorer.predictor is not None:
        identity["predictor"] = fingerprint(restorer.predictor.params)[:16]
    return Subject(title, identity, BatchedRestorer(restorer, mesh, batch_size))


def _where(checkpoint: str) -> str:
    """The absolute path of a model, or its name where it is bundled or on a hub."""
    folder = Path(checkpoint)
    return str(folder.resolve()) if folder.is_dir() else checkpoint

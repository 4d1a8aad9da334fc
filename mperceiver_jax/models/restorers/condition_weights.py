"""The condition of a network as weights of its classes, from labels or from a predictor."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array

CLASS_OF_TASK = {"deblur_defocus": "deblur_motion", "denoise_real": "denoise"}
"""Degradation -> the class that represents it in a network with fewer classes, such as PIP. Our own choice."""


def class_map_of(predicted: Sequence[str], known: Sequence[str | None]) -> tuple[int | None, ...]:
    """`meaning` for `weights_of_logits`: where a network has what another's predictor names.

    Args:
        predicted: names of the predictor's classes.
        known: names of the network's, None for those that it has not learned. One of another name stands for a
            predicted one where `CLASS_OF_TASK` says so; what has neither is not known.

    Raises:
        ValueError: none is known.
    """
    place = {name: index for index, name in enumerate(known) if name is not None}
    meaning = tuple(place.get(name, place.get(CLASS_OF_TASK.get(name, ""))) for name in predicted)
    if all(ours is None for ours in meaning):
        raise ValueError(f"the network knows {', '.join(place)}; nothing of what is predicted: {', '.join(predicted)}")
    return meaning


def weights_of_labels(labels: Int[Array, "b"], classes: int) -> Float[Array, "b classes"]:
    """One-hot weights (oracle). Several degradations at once are the mean of theirs."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32)


def weights_of_logits(
    logits: Float[Array, "b p"],
    classes: int | None = None,
    meaning: Sequence[int | None] | None = None,
    *,
    hard: bool = False,
) -> Float[Array, "b classes"]:
    """What a predictor says, as weights that sum to one (blind). float32.

    Args:
        classes: of the network; as many as the predictor has by default.
        meaning: the network's class for each of the predictor's, None for one that the network does not
            know; by default they are the same. Probabilities of one class add up; the unknown are left out.
        hard: the most probable class alone.

    Raises:
        ValueError: `meaning` does not fit the logits and the classes, or knows none of them.
    """
    predicted = logits.shape[-1]
    classes = predicted if classes is None else classes
    meaning = tuple(range(predicted) if meaning is None else meaning)
    known = [ours for ours in meaning if ours is not None]
    if len(meaning) != predicted or not known or min(known) < 0 or max(known) >= classes:
        raise ValueError(f"meaning {meaning} does not lead from {predicted} predicted classes to {classes}")
    table = np.zeros((predicted, classes), np.float32)
    for theirs, ours in enumerate(meaning):
        if ours is not None:
            table[theirs, ours] = 1
    # The softmax is over what is known, so that something is left however sure the predictor is of the rest.
    wide = jnp.where(table.any(-1), logits.astype(jnp.float32), -jnp.inf)
    weights = jax.nn.softmax(wide, -1) @ table
    return weights_of_labels(weights.argmax(-1), classes) if hard else weights

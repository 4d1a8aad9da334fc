"""MPerceiver's degradation predictor as the source of another network's condition."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restorers.condition_weights import class_map_of, weights_of_logits


class ExternalPredictor:
    """Predicts the degradation of an image in the tasks of another network.

    The probabilities of the tasks that the network knows are kept and sum to one again; see
    `condition_weights.class_map_of`.

    Args:
        predict: image (h, w, 3) in [0, 1] -> {task name: probability}, of a run of MPerceiver.
        params: of that run; they identify it.
        predicted: names of the tasks that it predicts, in the order of its classes.
        tasks: names of the network's tasks, in the order of its classes; None for one that it was not trained for.
        notes: warnings about the run of MPerceiver.

    Attributes:
        params: as given.
        notes: warnings for the user, one sentence each.

    Raises:
        ValueError: the network knows none of the predicted tasks.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], Mapping[str, float]],
        params: Params,
        predicted: Sequence[str],
        tasks: Sequence[str | None],
        notes: Sequence[str] = (),
    ):
        try:
            self._class_map = class_map_of(predicted, tasks)
        except ValueError as error:
            raise ValueError(f"predictor: {error}") from error
        self._predict, self._classes, self.params = predict, len(tasks), params
        self.notes = tuple(f"the predictor's run: {note}" for note in notes)
        unknown = [name for name, known in zip(predicted, self._class_map, strict=True) if known is None]
        if unknown:
            self.notes += (f"the predictor may predict {', '.join(unknown)}, which the network does not know",)

    def __call__(self, lq: np.ndarray) -> jax.Array:
        """Logits (1, tasks) of an image (h, w, 3) in [0, 1]; minus infinity for tasks that are never predicted."""
        predicted = np.array([[*self._predict(lq).values()]], np.float32)
        # A probability of zero would leave nothing where the predictor is sure of a task that the network lacks.
        logits = np.log(np.maximum(predicted, np.finfo(np.float32).tiny))
        return jnp.log(weights_of_logits(jnp.asarray(logits), self._classes, self._class_map))

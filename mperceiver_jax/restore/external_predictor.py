"""MPerceiver's degradation predictor in place of what another network would be told by a label or a classifier."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.models.restorers.condition_weights import class_map_of, weights_of_logits
from mperceiver_jax.restore.programs import Diffusion

if TYPE_CHECKING:
    from mperceiver_jax.restore.restorer import Restorer


class Predictor:
    """What a run of MPerceiver takes to be wrong with an image, in the tasks of another network.

    The probabilities of what the network knows are kept and sum to one again; see `conditions.class_map_of`.

    Args:
        restorer: of the run of MPerceiver; sees images as it does when it restores them.
        tasks: names of the network's tasks, in the order of its labels.
        trained: those of them that it was trained for; all where empty.

    Attributes:
        params: of the run of MPerceiver.
        notes: what the user should know, one sentence each.

    Raises:
        ValueError: the run is another model's, or the network knows nothing of what it predicts.
    """

    def __init__(self, restorer: "Restorer", tasks: Sequence[str], trained: Collection[str] = ()):
        if not isinstance(restorer._program, Diffusion):
            raise ValueError("predictor: the degradation predictor of a run of MPerceiver is wanted, this is another's")
        known = [name if not trained or name in trained else None for name in tasks]
        try:
            self._meaning = class_map_of(restorer._tasks, known)
        except ValueError as error:
            raise ValueError(f"predictor: {error}") from error
        self._restorer, self._classes, self.params = restorer, len(tasks), restorer._params
        self.notes = tuple(f"the predictor's run: {note}" for note in restorer.notes)
        unknown = [name for name, ours in zip(restorer._tasks, self._meaning, strict=True) if ours is None]
        if unknown:
            self.notes += (f"the network knows nothing of {', '.join(unknown)}, which the predictor may see",)

    def __call__(self, lq: np.ndarray) -> jax.Array:
        """Logits (1, tasks) of an image (h, w, 3) in [0, 1]; minus infinity for what is never predicted."""
        predicted = np.array([[*self._restorer.predict(lq).values()]], np.float32)
        # A probability of zero would leave nothing where the predictor is quite sure of what is not known.
        logits = np.log(np.maximum(predicted, np.finfo(np.float32).tiny))
        return jnp.log(weights_of_logits(jnp.asarray(logits), self._classes, self._meaning))

"""What runs on the device to restore an image: MPerceiver's sampling, or one pass of a restorer by regression.

Both are called alike by `Restorer` and `BatchedRestorer`, which know nothing of either.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.transforms import predictor_view
from mperceiver_jax.diffusion.restoration import Sampler, restore_batch, to_model_range
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restorers.registry import RegressionModel

# Sides are padded to multiples of this many pixels at least, so that few sizes are compiled.
GRANULARITY = 64


class Program(Protocol):
    """Attributes:
    multiple: sides of images must be multiples of this.
    """

    multiple: int

    def view(self, image: np.ndarray, padded: np.ndarray) -> np.ndarray:
        """What is looked at to see what is wrong with an image (h, w, 3): an array with a batch axis of 1."""
        ...

    def seen(self, params: Params, view: jax.Array) -> jax.Array:
        """What `restored` is told of the image as a whole, also where it restores a part of it."""
        ...

    def perceived(self, params: Params, seen: jax.Array) -> jax.Array:
        """Probabilities of the degradations, (1, classes); (1, 0) where nothing is predicted."""
        ...

    def restored(self, params: Params, lq: jax.Array, seen: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(restored image in [0, 1], probabilities as `perceived`) for one image (1, h, w, 3)."""
        ...


class Diffusion:
    """MPerceiver: the whole image is sampled at once, and seen by the image tower as a whole."""

    def __init__(self, model: MPerceiver, sampler: Sampler, dtype: str, refine: bool):
        self._structure, _ = parameters.split(model)
        self._sampler, self._dtype, self._refine = sampler, jnp.dtype(dtype), refine
        self._predictor = model.config.predictor
        self.multiple = math.lcm(GRANULARITY, model.config.multiple)

    def view(self, image: np.ndarray, padded: np.ndarray) -> np.ndarray:
        side = self._predictor.vision.image_size
        native = self._predictor.view == "native"
        return predictor_view(image if native else padded, side, self._predictor.view, self._predictor.views)[None]

    def seen(self, params: Params, view: jax.Array) -> jax.Array:
        # Embedded where it is used: sampling and its view are one program.
        return view

    def perceived(self, params: Params, seen: jax.Array) -> jax.Array:
        _, logits = parameters.merge(self._structure, params).perceive(seen.astype(self._dtype))
        return jax.nn.softmax(logits.astype(jnp.float32))

    def restored(self, params: Params, lq: jax.Array, seen: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        assembled = parameters.merge(self._structure, params)
        lq = to_model_range(lq, self._dtype)
        out, logits = restore_batch(assembled, self._sampler, lq, seen.astype(self._dtype), key, refine=self._refine)
        return jnp.clip((out.astype(jnp.float32) + 1) / 2, 0, 1), jax.nn.softmax(logits.astype(jnp.float32))


class Regression:
    """A restorer by regression. Its classifier, where it has one, sees the image as a whole and without padding,
    as MiOIR's release has it. That takes about 75 bytes a pixel (float32, on a CPU), also where tiles are restored.

    Args:
        label: what is wrong with the images; None asks the classifier.
        predicted: somebody else's logits are given to `restored`, in place of what is `seen`.

    Raises:
        ValueError: the model must be told what is wrong, and is not.
    """

    def __init__(self, model: RegressionModel, dtype: str, label: int | None, *, predicted: bool = False):
        config = model.config
        if config.is_conditional and config.condition_source == "label" and label is None and not predicted:
            raise ValueError(
                f"{config.title} must be told what is wrong with the images, this one has no classifier: "
                f"--task=NAME, one of {', '.join(config.tasks)}, or --predictor=DIR, a run of MPerceiver"
            )
        self._structure, _ = parameters.split(model)
        self._dtype, self._label = jnp.dtype(dtype), label
        self.multiple = model.multiple

    def view(self, image: np.ndarray, padded: np.ndarray) -> np.ndarray:
        return image[None]

    def seen(self, params: Params, view: jax.Array) -> jax.Array:
        """The classifier's logits, (1, tasks); (1, 0) where there is none."""
        logits = parameters.merge(self._structure, params).logits(view.astype(self._dtype))
        return jnp.zeros((len(view), 0)) if logits is None else logits.astype(jnp.float32)

    def perceived(self, params: Params, seen: jax.Array) -> jax.Array:
        return jax.nn.softmax(seen) if seen.size else seen

    def restored(self, params: Params, lq: jax.Array, seen: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = parameters.merge(self._structure, params)
        labels = None if self._label is None else jnp.full((len(lq),), self._label)
        # Who says what is wrong is believed more than the classifier.
        weights = model.weights(seen if labels is None and seen.size else None, labels)
        out = model(lq.astype(self._dtype), weights)
        return jnp.clip(out.astype(jnp.float32), 0, 1), self.perceived(params, seen)

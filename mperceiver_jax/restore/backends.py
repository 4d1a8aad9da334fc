"""The computation that restores an image on the device: MPerceiver's sampling, or one pass of a regression network.

`Restorer` and `BatchedRestorer` call both through one interface, `Backend`.
"""

import contextlib
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.transforms import predictor_view
from mperceiver_jax.diffusion.restoration import Noise, Sampler, draw_noise, restore_batch, to_model_range
from mperceiver_jax.models import parameters, shared_statistics
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.models.shared_statistics import Statistics

# Sides are padded to multiples of this many pixels at least, so that few sizes are compiled.
GRANULARITY = 64
# Large enough that the overlap costs little, small enough for 3 GB of memory with an image of 12 megapixels.
AUTOMATIC_TILE = 640
# Longer sides are padded to every second multiple: images of any size then share 64 programs.
FINE_SIDES = 256


class Shared(NamedTuple):
    """What a tile shares with the others of its image.

    Attributes:
        statistics: see `models.shared_statistics`.
        noise: the tile's part of the image's, or None.
    """

    statistics: Statistics
    noise: Noise | None


class Backend(Protocol):
    """How a kind of model restores one image.

    Attributes:
        multiple: sides of images must be multiples of this.
        predicts: whether the model is MPerceiver, whose predictor can serve other models.
        has_probabilities: whether the model itself predicts the degradation.
        automatic_tile: side of the tiles for large images where the user gives none; 0 restores whole images.
    """

    multiple: int
    predicts: bool
    has_probabilities: bool
    automatic_tile: int

    def side(self, length: int) -> int:
        """The side of an image at which one of this length is computed: few different ones, so that few programs are
        compiled.
        """
        ...

    def condition_input(self, image: np.ndarray, padded: np.ndarray) -> np.ndarray:
        """The view of an image (h, w, 3) from which its condition is computed: an array with a batch axis of 1."""
        ...

    def condition(self, params: Params, view: jax.Array) -> jax.Array:
        """The condition of an image as a whole, which `restore` takes for the image or for a tile of it."""
        ...

    def probabilities(self, params: Params, condition: jax.Array) -> jax.Array:
        """Probabilities of the degradations, (1, classes); (1, 0) where the model predicts none."""
        ...

    def restore(
        self,
        params: Params,
        lq: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        logits: jax.Array | None = None,
        tile: Shared | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(restored image in [0, 1], probabilities of the degradations) of one image or tile (1, h, w, 3).

        Args:
            logits: (1, classes), in place of the predicted ones.
            tile: of a tile, what it shares with the others of its image.
        """
        ...

    def noise(self, shape: tuple[int, ...], key: jax.Array) -> Noise | None:
        """What restoring an image of this shape (1, h, w, 3) draws; None for networks that draw nothing."""
        ...

    def noise_of_tile(self, noise: Noise | None, top: int, left: int, height: int, width: int) -> Noise | None:
        """The part of an image's noise that belongs to a tile; all numbers are multiples of `multiple`."""
        ...


class Diffusion:
    """MPerceiver. The predictor sees the image as a whole, also where tiles of it are restored.

    Tiles are for models without attention over all positions: with it, a tile is restored unlike the whole image.
    """

    def __init__(self, model: MPerceiver, sampler: Sampler, dtype: str, refine: bool, detail: float = 0.0):
        self._structure, _ = parameters.split(model)
        self._sampler, self._dtype, self._refine = sampler, jnp.dtype(dtype), refine
        self._detail = detail
        self._config, self._predictor = model.config, model.config.predictor
        self.multiple = math.lcm(GRANULARITY, model.config.multiple)
        self.predicts = self.has_probabilities = True
        self.automatic_tile = AUTOMATIC_TILE if model.config.is_local else 0

    def side(self, length: int) -> int:
        # Attention over the whole image costs the square of what is added.
        coarse = self.automatic_tile and length > FINE_SIDES
        return rounded_up(length, 2 * self.multiple if coarse else self.multiple)

    def condition_input(self, image: np.ndarray, padded: np.ndarray) -> np.ndarray:
        side = self._predictor.vision.image_size
        native = self._predictor.view == "native"
        return predictor_view(image if native else padded, side, self._predictor.view, self._predictor.views)[None]

    def condition(self, params: Params, view: jax.Array) -> jax.Array:
        # The view itself: it is embedded in the same program as the sampling.
        return view

    def probabilities(self, params: Params, condition: jax.Array) -> jax.Array:
        _, logits = parameters.merge(self._structure, params).perceive(condition.astype(self._dtype))
        return jax.nn.softmax(logits.astype(jnp.float32))

    def restore(
        self,
        params: Params,
        lq: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        logits: jax.Array | None = None,
        tile: Shared | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        with contextlib.nullcontext() if tile is None else shared_statistics.given(tile.statistics):
            out, used = restore_batch(
                parameters.merge(self._structure, params),
                self._sampler,
                to_model_range(lq, self._dtype),
                condition.astype(self._dtype),
                key,
                refine=self._refine,
                detail=self._detail,
                logits=None if logits is None else logits.astype(self._dtype),
                noise=None if tile is None else tile.noise,
            )
        return jnp.clip((out.astype(jnp.float32) + 1) / 2, 0, 1), jax.nn.softmax(used.astype(jnp.float32))

    def noise(self, shape: tuple[int, ...], key: jax.Array) -> Noise | None:
        return draw_noise(self._config.latent_shape(shape), key, self._dtype)

    def noise_of_tile(self, noise: Noise | None, top: int, left: int, height: int, width: int) -> Noise | None:
        assert noise is not None
        rows, columns = (
            slice(a // self._config.downscale, b // self._config.downscale)
            for a, b in ((top, top + height), (left, left + width))
        )
        return Noise(*(part[:, rows, columns] for part in noise))


class Regression:
    """A restorer by regression. Its classifier, where it has one, sees the image as a whole and without padding,
    as MiOIR's release has it. That takes about 75 bytes a pixel (float32, on a CPU), also where tiles are restored.

    Args:
        label: class of the degradation of all images; None asks the classifier.
        predicted: the condition comes from another model's predictor.

    Raises:
        ValueError: the network needs a condition, and there is neither a label nor a classifier nor a predictor.
    """

    def __init__(self, model: RegressionModel, dtype: str, label: int | None, *, predicted: bool = False):
        config = model.config
        if config.is_conditional and config.condition_source == "label" and label is None and not predicted:
            raise ValueError(
                f"{config.title} needs the degradation of the images as input, and this one has no classifier: "
                f"--task=NAME, one of {', '.join(config.tasks)}, or --predictor=DIR, a run of MPerceiver"
            )
        self._structure, _ = parameters.split(model)
        self._dtype, self._label = jnp.dtype(dtype), label
        self.multiple = model.multiple
        self.predicts = False
        self.has_probabilities = hasattr(model, "classifier") and label is None
        self.automatic_tile = 0

    def side(self, length: int) -> int:
        # As the releases do: networks with means over the image see the padding, too.
        return rounded_up(length, self.multiple)

    def condition_input(self, image: np.ndarray, padded: np.ndarray) -> np.ndarray:
        return image[None]

    def condition(self, params: Params, view: jax.Array) -> jax.Array:
        """The classifier's logits, (1, tasks); (1, 0) where there is none."""
        logits = parameters.merge(self._structure, params).logits(view.astype(self._dtype))
        return jnp.zeros((len(view), 0)) if logits is None else logits.astype(jnp.float32)

    def probabilities(self, params: Params, condition: jax.Array) -> jax.Array:
        return jax.nn.softmax(condition) if condition.size else condition

    def restore(
        self,
        params: Params,
        lq: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        logits: jax.Array | None = None,
        tile: Shared | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        condition = condition if logits is None else logits
        model = parameters.merge(self._structure, params)
        labels = None if self._label is None else jnp.full((len(lq),), self._label)
        # A label overrides the classifier.
        weights = model.weights(condition if labels is None and condition.size else None, labels)
        with contextlib.nullcontext() if tile is None else shared_statistics.given(tile.statistics):
            out = model(lq.astype(self._dtype), weights)
        return jnp.clip(out.astype(jnp.float32), 0, 1), self.probabilities(params, condition)

    def noise(self, shape: tuple[int, ...], key: jax.Array) -> Noise | None:
        return None

    def noise_of_tile(self, noise: Noise | None, top: int, left: int, height: int, width: int) -> Noise | None:
        return None


def statistics_of(
    backend: Backend, params: Params, squares: jax.Array, condition: jax.Array, key: jax.Array, logits: jax.Array | None
) -> Statistics:
    """What the tiles of an image share (`models.shared_statistics`), from squares of it (n, s, s, 3)."""
    conditions = jnp.repeat(condition, len(squares), 0)
    with shared_statistics.recorded() as found:
        backend.restore(
            params, squares, conditions, key, None if logits is None else jnp.repeat(logits, len(squares), 0)
        )
    return found


def rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def backend_of(
    model: RestorationModel,
    sampler: Sampler | None,
    *,
    dtype: str,
    refine: bool,
    detail: float = 0.0,
    task: str | None,
    predicted: bool,
    given: bool = False,
) -> Backend:
    """The backend of a model.

    Args:
        predicted: the condition comes from another model's predictor.
        given: the user gives the degradations of all images.

    Raises:
        ValueError: a task or predictor that the model does not take, or a condition that it lacks.
    """
    ways = {"task": task is not None, "predictor": predicted, "degradations": given}
    chosen = [name for name, used in ways.items() if used]
    if len(chosen) > 1:
        raise ValueError(f"{', '.join(chosen)}: give one of them")
    if isinstance(model, MPerceiver):
        if sampler is None:
            raise ValueError("sampler: MPerceiver needs one")
        if chosen and not given:
            raise ValueError(f"{chosen[0]}: MPerceiver predicts the degradation itself; leave it out")
        return Diffusion(model, sampler, dtype, refine, detail)
    if detail:
        raise ValueError(f"detail: {model.config.title} is no diffusion model; leave it out")
    config = model.config
    if task is not None and task not in config.tasks:
        raise ValueError(f"task: {task!r} given, one of {', '.join(config.tasks)} expected")
    if chosen and not config.is_conditional:
        raise ValueError(f"{chosen[0]}: {config.title} does not take the degradation as input; leave it out")
    return Regression(model, dtype, None if task is None else config.tasks.index(task), predicted=predicted or given)

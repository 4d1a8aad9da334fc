"""The restorer: a trained model on one device, which restores images of any size.

An image is padded at the bottom and right by reflection. Its degradation is predicted from the image as a whole (by
a classifier without the padding); then it is restored as a whole, or in tiles, and cut back to its size.
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipelines.tasks import TASKS, Task
from mperceiver_jax.checkpoints.initial_params import Which, read_experiment
from mperceiver_jax.checkpoints.released import bundled_names, is_released, locate
from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.command_line import DEFAULT_WEIGHTS
from mperceiver_jax.diffusion.restoration import Sampler
from mperceiver_jax.image_files import LoadedImage, crop_to, pad_to_size, pixels_of_pillow
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.random_streams import Streams
from mperceiver_jax.restore.backends import GRANULARITY, Shared, backend_of, statistics_of
from mperceiver_jax.restore.colour import adain, wavelet_fix
from mperceiver_jax.restore.controls import blend, given_probabilities, strength_of
from mperceiver_jax.restore.external_predictor import ExternalPredictor
from mperceiver_jax.restore.pixels import AnyImage, Restoration, as_given, checked_rgb
from mperceiver_jax.restore.settings import RestoreSettings, sampler_for
from mperceiver_jax.restore.tiling import aligned_starts, check_sizes, fitting_tile, restore_in_tiles, squares_of


class Restorer:
    """Restores images one at a time. The same image, seed and settings give the same result, whatever
    was restored before.

    The first image of every padded size is compiled, which takes longer than restoring it.

    Args:
        model: built abstractly.
        params: every parameter of it, on the device that computes.
        settings: see there; fields left at None take the defaults of `config.experiment.RestoreConfig` and float32.
        sampler: of MPerceiver; required for it.
        tasks: the tasks of the model's classes, in their order.
        predictor: restorer of a run of MPerceiver, whose predictor gives other models their condition.
        trained_tasks: names of the tasks that the model was trained for, all where empty; a predictor gives no other.
        notes: warnings about the model for its user, one sentence each.
        weight_kind: description of `params` for messages: moving averages or last parameters.
        tile: side of the tiles where the settings give none; 0 leaves it to the backend.

    Attributes:
        params, settings, sampler, notes, weight_kind: as given; `settings.refine` and `tile` as they are applied.
        task_names: names of the tasks of the model's classes.
        backend: the computation, see `backends.Backend`.
        predictor: the external predictor, or None.
        tile: side of the tiles in pixels; 0 for whole images.

    Raises:
        ValueError: settings that this model does not have, or tiles that do not fit it.
    """

    def __init__(
        self,
        model: RestorationModel,
        params: Params,
        settings: RestoreSettings | None = None,
        *,
        sampler: Sampler | None = None,
        tasks: Sequence[Task] = TASKS,
        predictor: "Restorer | None" = None,
        trained_tasks: Collection[str] = (),
        notes: tuple[str, ...] = (),
        weight_kind: str = "",
        tile: int = 0,
    ):
        self.settings = settings = settings or RestoreSettings()
        self.params, self.sampler, self.weight_kind = params, sampler, weight_kind
        self.task_names = [one.name for one in tasks]
        self.backend = backend_of(
            model,
            sampler,
            dtype=settings.dtype or "float32",
            refine=settings.refine,
            detail=settings.detail,
            task=settings.task,
            predicted=predictor is not None,
            given=bool(settings.degradations),
        )
        self.predictor = _external(predictor, self.task_names, trained_tasks)
        self._clean = next((one.name for one in tasks if one.clean), "")
        self._check_controls()
        self.notes = notes + (self.predictor.notes if self.predictor is not None else ())
        self.tile = (tile or self.backend.automatic_tile) if settings.tile is None else settings.tile
        if self.tile and not model.config.is_local:
            raise ValueError("tile: this model attends to the whole image; leave tiles out, or reduce the image")
        if self.tile:
            check_sizes(self.tile, settings.overlap, self.backend.multiple)
        self._min_size = 512 if settings.min_size is None else settings.min_size
        # Each keeps one compiled program per size.
        self._restore_one, self._probabilities = jax.jit(self.backend.restore), jax.jit(self.backend.probabilities)
        self._condition, self._statistics = (
            jax.jit(self.backend.condition),
            jax.jit(partial(statistics_of, self.backend)),
        )

    def _check_controls(self) -> None:
        """Raises ValueError for settings on degradations that this model does not take or know."""
        settings, by_task = self.settings, isinstance(self.settings.strength, Mapping)
        self._needs_prediction = bool(settings.only or settings.skip or by_task)
        if self._needs_prediction and not (self.backend.has_probabilities or self.predictor is not None):
            raise ValueError("strength of a task, only, skip: this model predicts no degradation; leave them out")
        even = dict.fromkeys(self.task_names, 1.0)
        strength_of(settings.strength, even, self.task_names, self._clean, settings.only, settings.skip)
        self._given_logits(even)

    @classmethod
    def from_pretrained(cls, name: str = DEFAULT_WEIGHTS, settings: RestoreSettings | None = None) -> "Restorer":
        """Released weights, on the default device.

        Args:
            name: bundled weights such as "base", hf://OWNER/NAME for a repository of the Hugging Face hub, or a
                folder; see `checkpoints.released.locate`.
            settings: see `RestoreSettings`.

        Raises:
            ConfigError: a repository that cannot be had.
            FileNotFoundError, ValueError: no weights of that name, or they cannot be read.
        """
        folder = locate(name)
        if not is_released(folder):
            raise FileNotFoundError(
                f"{name}: no released weights; the package holds {', '.join(bundled_names()) or 'none'}, "
                "and hf://OWNER/NAME names a repository of the Hugging Face hub"
            )
        return cls.from_checkpoint(folder, settings)

    @classmethod
    def from_checkpoint(
        cls,
        workdir: str | Path,
        settings: RestoreSettings | None = None,
        *,
        pretrained: str | Path | None = None,
        predictor: "str | Path | Restorer | None" = None,
        weights: Which | None = None,
    ) -> "Restorer":
        """The model that a training run left in its workdir, or released weights, on the default device.

        Takes every stage's last checkpoint. Warns where a stage is unfinished, or the refinement was
        never trained: then images are decoded without it.

        Args:
            workdir: of the run; or a folder of released weights, or what else `checkpoints.released.locate` takes.
            settings: see `RestoreSettings`.
            pretrained: directory of the pretrained weights of the run (or of the predictor's), if it has moved.
            predictor: see the class; or the workdir of its run, which is read as a whole.
            weights: `ema`, the moving averages, or `last`, the last parameters; None takes the averages of
                the stages that keep one.

        Raises:
            FileNotFoundError: there is no run in that directory.
            ValueError: settings out of range, a configuration or pretrained weights that cannot be used
                (`ConfigError`), stages without a checkpoint, or none with a moving average.
            CheckpointError: a checkpoint that cannot be read or does not fit.
        """
        settings = settings or RestoreSettings()
        workdir = locate(workdir)
        experiment = read_experiment(workdir)
        if isinstance(predictor, str | Path):
            # The network itself has no pretrained weights.
            undecoded = RestoreSettings(refine=False)
            predictor, pretrained = cls.from_checkpoint(predictor, undecoded, pretrained=pretrained), None
        sampler = sampler_for(experiment, settings)
        model = experiment.build()
        trained = run_params(workdir, weights, pretrained, in_memory=True)
        notes = trained.notes + trained.unfinished
        if isinstance(model, MPerceiver) and settings.refine and not trained.refined:
            notes += ("the detail refinement was not trained; images are decoded without it",)
        for note in notes:
            warnings.warn(f"{workdir}: {note}", stacklevel=2)
        settings = replace(
            settings,
            refine=settings.refine and trained.refined,
            min_size=experiment.restore.min_size if settings.min_size is None else settings.min_size,
            dtype=settings.dtype or experiment.compute_dtype,
        )
        return cls(
            model,
            trained.on_device(),
            settings,
            sampler=sampler,
            tasks=experiment.tasks,
            predictor=predictor,
            trained_tasks=experiment.data.weights,
            notes=notes,
            weight_kind=trained.weight_kind,
            tile=experiment.restore.tile,
        )

    def __call__(self, image: AnyImage) -> AnyImage:
        """The restored image; see `restore`."""
        return self.restore(image).image  # type: ignore[return-value]

    def restore(
        self, image: np.ndarray | LoadedImage | Image.Image, mask: Float[np.ndarray, "h w"] | None = None
    ) -> Restoration:
        """Restores one image.

        Args:
            image: uint8, uint16 or floating-point array in [0, 1], (height, width, 3) RGB, (height, width,
                4) with alpha, or (height, width) grey; what `read_image` gives; or a Pillow image, whose orientation
                is applied. Alpha is kept as it is.
            mask: 1 where the image is restored, 0 where it stays as it is; softened by `settings.feather`.

        Returns:
            The image with the same shape and type, and the predicted degradations. A grey image is
            restored as three equal channels; what comes back is their luma.

        Raises:
            ValueError: another type or shape, or values that are not finite or outside [0, 1].
        """
        if isinstance(image, LoadedImage):
            pixels, probabilities, strength = self._restore(image.pixels, mask)
            return Restoration(replace(image, pixels=pixels), probabilities, strength)
        array = pixels_of_pillow(image) if isinstance(image, Image.Image) else image
        pixels, probabilities, strength = self._restore(checked_rgb(array), mask)
        result = as_given(pixels, array, self.settings.rounding)
        same = Image.fromarray(result) if isinstance(image, Image.Image) else result
        return Restoration(same, probabilities, strength)

    def predict(self, image: np.ndarray | LoadedImage | Image.Image) -> dict[str, float]:
        """Task name -> probability of that degradation, without restoring; arguments as in `restore`.

        Empty for models that do not predict any.
        """
        if isinstance(image, Image.Image):
            image = pixels_of_pillow(image)
        colours = image.pixels if isinstance(image, LoadedImage) else checked_rgb(image)
        return self._named(self._probabilities(self.params, self.condition(colours)))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which an image, or each of its tiles, is computed; every new one is compiled."""
        return self._tile_sides(height, width) or self._sides(height, width)

    def tile_count(self, height: int, width: int) -> int:
        """The number of tiles in which an image of that size is restored; 1 for the whole image."""
        if (tile := self._tile_sides(height, width)) is None:
            return 1
        overlap, align = self.settings.overlap, self.backend.multiple
        pairs = zip(self._sides(height, width), tile, strict=True)
        return math.prod(len(aligned_starts(side, most, overlap, align)) for side, most in pairs)

    def _tile_sides(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of the tiles of an image of that size; None where it is restored as a whole."""
        if not self.tile or max(height, width) <= self.tile:
            return None
        # In few sizes, as images are.
        overlap, align = self.settings.overlap, math.lcm(GRANULARITY, self.backend.multiple)
        rows, columns = self._sides(height, width)
        if self.settings.tile is not None:
            return min(rows, self.tile), min(columns, self.tile)
        return fitting_tile(rows, self.tile, overlap, align), fitting_tile(columns, self.tile, overlap, align)

    def padded(self, lq: np.ndarray) -> np.ndarray:
        """An image (h, w, 3) padded by reflection to the size at which it is computed without tiles."""
        return pad_to_size(lq, *self._sides(*lq.shape[:2]))

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        least = self._min_size
        return self.backend.side(max(height, least)), self.backend.side(max(width, least))

    def condition(self, lq: np.ndarray, padded: np.ndarray | None = None) -> jax.Array:
        """The condition of an image (h, w, 3) as a whole, see `Backend.condition`; `padded` where it is at hand."""
        if self.predictor is not None:
            return self.predictor(lq)
        view = self.backend.condition_input(lq, self.padded(lq) if padded is None else padded)
        return self._condition(self.params, view)

    @property
    def key(self) -> jax.Array:
        """The random key of every image: it depends on the seed alone, so that no image changes another."""
        return Streams(self.settings.seed).key("restore")

    def _restore(
        self, lq: Float[np.ndarray, "h w 3"], mask: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, float], float]:
        settings, padded = self.settings, self.padded(lq)
        condition = self.condition(lq, padded)
        predicted = self._named(self._probabilities(self.params, condition)) if self._needs_prediction else {}
        logits = self._given_logits(predicted)
        strength = strength_of(settings.strength, predicted, self.task_names, self._clean, settings.only, settings.skip)
        if (tile := self._tile_sides(*lq.shape[:2])) is not None:
            pixels, probabilities = self._restore_tiles(padded, tile, condition, logits)
        else:
            out, found = self._restore_one(self.params, padded[None], condition, self.key, logits)
            pixels, probabilities = np.asarray(out[0]), self._named(found)
        pixels = crop_to(pixels, *lq.shape[:2])
        if settings.colour != "none":
            fix = adain if settings.colour == "adain" else wavelet_fix
            pixels = np.clip(fix(pixels, lq), 0, 1)
        return blend(lq, pixels, strength, mask, settings.feather), probabilities, strength

    def _restore_tiles(
        self, padded: np.ndarray, tile: tuple[int, int], condition: jax.Array, logits: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Tile by tile, each under the condition of the whole image, which is padded so that windows lie as in it."""
        key, backend = self.key, self.backend
        sample = (self.params, squares_of(padded, backend.multiple), condition, key, logits)
        # Most restorers by regression share nothing.
        statistics = self._statistics(*sample) if jax.eval_shape(self._statistics, *sample) else []
        noise = backend.noise((1, *padded.shape), key)

        def restored(part: np.ndarray, top: int, left: int) -> np.ndarray:
            shared = Shared(statistics, backend.noise_of_tile(noise, top, left, *part.shape[:2]))
            return np.asarray(self._restore_one(self.params, part[None], condition, key, logits, shared)[0][0])

        pixels = restore_in_tiles(restored, padded, tile, self.settings.overlap, backend.multiple)
        found = self._probabilities(self.params, condition) if logits is None else jax.nn.softmax(logits)
        return pixels, self._named(found)

    def _given_logits(self, predicted: Mapping[str, float]) -> np.ndarray | None:
        """Logits of the degradations that the settings give in place of the predicted ones."""
        settings = self.settings
        given = given_probabilities(
            predicted, self.task_names, self._clean, settings.degradations, settings.only, settings.skip
        )
        return None if given is None else np.log(np.maximum(given, 1e-9))

    def _named(self, probabilities: jax.Array) -> dict[str, float]:
        values = np.asarray(probabilities[0]).tolist()
        return dict(zip(self.task_names, values, strict=True)) if values else {}


def _external(
    restorer: Restorer | None, tasks: Sequence[str], trained_tasks: Collection[str]
) -> ExternalPredictor | None:
    """The predictor of another run, for a network with these tasks."""
    if restorer is None:
        return None
    if not restorer.backend.predicts:
        raise ValueError("predictor: a run of MPerceiver is needed, for its degradation predictor")
    known = [name if not trained_tasks or name in trained_tasks else None for name in tasks]
    return ExternalPredictor(restorer.predict, restorer.params, restorer.task_names, known, restorer.notes)

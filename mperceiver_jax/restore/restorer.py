"""The restorer: a trained model on one device, images of any size in, restored images out.

An image is padded at the bottom and right by reflection, seen as a whole to tell what is wrong
with it (by a classifier without the padding), restored as a whole (or in tiles, see there) and cut
back to its size.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import jax
import numpy as np
from jaxtyping import Float

from data_pipelines.images import as_float
from data_pipelines.tasks import TASKS, Task
from mperceiver_jax.checkpoints.initial_params import Which, read_experiment
from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.diffusion.restoration import Sampler, SamplerName, sampler_of
from mperceiver_jax.image_files import LoadedImage, Rounding, crop_to, pad_to, quantise
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.random_streams import Streams
from mperceiver_jax.restore.colour import adain, wavelet_fix
from mperceiver_jax.restore.external_predictor import Predictor
from mperceiver_jax.restore.programs import Diffusion, Program, Regression
from mperceiver_jax.restore.tiling import check_sizes, restore_in_tiles

Colour = Literal["none", "adain", "wavelet"]
AnyImage = TypeVar("AnyImage", np.ndarray, LoadedImage)


class Restoration(NamedTuple):
    """A restored image, and what the model took to be wrong with it.

    Attributes:
        image: of the kind that was given.
        probabilities: task name -> probability of that degradation; they sum to one. Empty for models that do
            not predict any.
    """

    image: np.ndarray | LoadedImage
    probabilities: dict[str, float]


class Restorer:
    """Restores images one at a time. The same image, seed and settings give the same result, whatever
    was restored before.

    The first image of every padded size is compiled, which takes longer than restoring it.

    Args:
        model: built abstractly.
        params: every parameter of it, on the device that shall compute.
        sampler: MPerceiver's, see `diffusion.samplers.DDIM` and `diffusion.dpm_solver.DPMSolver`.
        min_size: images are padded to at least so many pixels a side.
        dtype: computed in.
        seed: of the starting noise, 0 to 2**32 - 1.
        refine: decode with the detail refinement module.
        colour: give the result the colours of the degraded image: `adain`, `wavelet` (see `colour.py`),
            or `none`.
        rounding: to integer pixels, see `quantise`.
        notes: what the user should know about the model, one sentence each.
        tasks: what the model's labels stand for.
        task: name of what is wrong with the images, for models that can be told; None predicts it.
        predictor: of MPerceiver; predicts it in place of the model's own classifier, for models that can be told.
        trained: names of the tasks that the model was trained for, all where empty; a predictor names no other.
        tile, overlap: restorers by regression only: restore in tiles, see `tiling`; 0 takes whole images.
        weight_kind: which of the trained parameters `params` are, for people.

    Raises:
        ValueError: settings out of range, or that this model does not have.
    """

    def __init__(
        self,
        model: MPerceiver | RegressionModel,
        params: Params,
        sampler: Sampler | None = None,
        *,
        min_size: int = 512,
        dtype: str = "float32",
        seed: int = 42,
        refine: bool = True,
        colour: Colour = "none",
        rounding: Rounding = "round",
        notes: tuple[str, ...] = (),
        tasks: Sequence[Task] = TASKS,
        task: str | None = None,
        predictor: "Restorer | None" = None,
        trained: Collection[str] = (),
        tile: int = 0,
        overlap: int = 64,
        weight_kind: str = "",
    ):
        _check_settings(seed, colour, rounding)
        self.sampler, self.seed, self.refine = sampler, seed, refine
        self.colour, self.rounding, self.notes, self.weight_kind = colour, rounding, notes, weight_kind
        self._params = params
        self._min_size, self._tile, self._overlap = min_size, tile, overlap
        self._tasks = [one.name for one in tasks]
        self._program = _program(model, sampler, dtype, refine, task, predictor is not None)
        self._predictor = None if predictor is None else Predictor(predictor, self._tasks, trained)
        self.notes += () if self._predictor is None else self._predictor.notes
        self._multiple = self._program.multiple
        if tile and isinstance(model, MPerceiver):
            raise ValueError("tile: MPerceiver restores images as a whole; leave tiles out, or reduce the image")
        if tile:
            check_sizes(tile, overlap, self._multiple)
        # Each keeps one compiled program per size.
        self._restored, self._perceived = jax.jit(self._program.restored), jax.jit(self._program.perceived)
        self._see = jax.jit(self._program.seen)

    @classmethod
    def from_checkpoint(
        cls,
        workdir: str | Path,
        *,
        sampler: SamplerName | None = None,
        steps: int | None = None,
        seed: int = 42,
        refine: bool = True,
        colour: Colour = "none",
        rounding: Rounding = "round",
        pretrained: str | Path | None = None,
        task: str | None = None,
        predictor: "str | Path | Restorer | None" = None,
        tile: int = 0,
        overlap: int = 64,
        weights: Which | None = None,
    ) -> "Restorer":
        """The model that a training run left in its workdir, on the default device.

        Takes every stage's last checkpoint. Warns where a stage is unfinished, or the refinement was
        never trained: then images are decoded without it.

        Args:
            sampler: `ddim` (the correct schedule), `reference` (the release's) or `dpmpp_2m` (DPM-Solver++,
                for 10 to 25 steps); as configured when None.
            steps: of the sampler; as configured when None.
            pretrained: the directory of pretrained weights that the run (or the predictor's) started from, where it
                has moved since.
            predictor: see the class; or the workdir of its run, which is read whole.
            task, tile, overlap: see the class.
            weights: `ema`, the moving averages, or `trained`, the last parameters; None takes the averages of
                the stages that keep one.

        Raises:
            FileNotFoundError: there is no run in that directory.
            ValueError: settings out of range, a configuration or pretrained that cannot be used (`ConfigError`),
                stages without a checkpoint, or none with a moving average.
            CheckpointError: a checkpoint that cannot be read or does not fit.
        """
        _check_settings(seed, colour, rounding)
        experiment = read_experiment(workdir)
        if isinstance(predictor, str | Path):
            # The network itself has no pretrained weights.
            predictor, pretrained = cls.from_checkpoint(predictor, refine=False, pretrained=pretrained), None
        model = experiment.build()
        if isinstance(model, RegressionModel) and (sampler or steps):
            raise ValueError(f"sampler, steps: {experiment.title} has no sampler; one pass restores an image")
        name = sampler or experiment.sampler.name
        choice = replace(
            experiment.sampler,
            name=name,
            steps=experiment.sampler.steps if steps is None else steps,
            # A run may have been configured with another sampler, and noise that this one does not draw.
            eta=0.0 if name == "dpmpp_2m" else experiment.sampler.eta,
        )
        chosen = sampler_of(choice)
        trained = run_params(workdir, weights, pretrained, in_memory=True)
        notes = trained.unfinished
        if isinstance(model, MPerceiver) and refine and not trained.refined:
            notes += ("the detail refinement was not trained; images are decoded without it",)
        for note in notes:
            warnings.warn(f"{workdir}: {note}", stacklevel=2)
        return cls(
            model,
            trained.on_device(),
            chosen if isinstance(model, MPerceiver) else None,
            min_size=experiment.restore.min_size,
            dtype=experiment.compute_dtype,
            seed=seed,
            refine=refine and trained.refined,
            colour=colour,
            rounding=rounding,
            notes=notes,
            tasks=experiment.tasks,
            task=task,
            predictor=predictor,
            trained=experiment.data.weights,
            tile=tile,
            overlap=overlap,
            weight_kind=trained.weight_kind,
        )

    def __call__(self, image: AnyImage) -> AnyImage:
        """The restored image; see `restore`."""
        return self.restore(image).image  # type: ignore[return-value]

    def restore(self, image: np.ndarray | LoadedImage) -> Restoration:
        """Restores one image.

        Args:
            image: uint8, uint16 or floating-point array in [0, 1], (height, width, 3) RGB, (height, width,
                4) with alpha, or (height, width) grey; or what `read_image` gives. Alpha is kept as it is.

        Returns:
            The image with the same shape and type, and the predicted degradations. A grey image is
            restored as three equal channels; what comes back is their luma.

        Raises:
            ValueError: another type or shape, or values that are not finite or outside [0, 1].
        """
        if isinstance(image, LoadedImage):
            pixels, probabilities = self._restore(image.pixels)
            return Restoration(replace(image, pixels=pixels), probabilities)
        pixels, probabilities = self._restore(_check_rgb(image))
        return Restoration(self._match_input(pixels, image), probabilities)

    def predict(self, image: np.ndarray | LoadedImage) -> dict[str, float]:
        """Task name -> probability of that degradation, without restoring; arguments as in `restore`.

        Empty for models that do not predict any.
        """
        colours = image.pixels if isinstance(image, LoadedImage) else _check_rgb(image)
        return self._named(self._perceived(self._params, self._seen(colours)))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which an image is computed; every new one is compiled."""
        if self._tile:
            height, width = min(height, self._tile), min(width, self._tile)
        rows, columns = (-(-max(side, self._min_size) // self._multiple) for side in (height, width))
        return rows * self._multiple, columns * self._multiple

    def _restore(self, lq: Float[np.ndarray, "h w 3"]) -> tuple[np.ndarray, dict[str, float]]:
        if self._tile:
            pixels, probabilities = self._restore_tiles(lq)
        else:
            padded = self._padded(lq)
            # The key is the seed's alone: no other image before or after changes this one.
            key = Streams(self.seed).key("restore")
            out, found = self._restored(self._params, padded[None], self._seen(lq, padded), key)
            pixels, probabilities = crop_to(np.asarray(out[0]), *lq.shape[:2]), self._named(found)
        if self.colour != "none":
            fix = adain if self.colour == "adain" else wavelet_fix
            pixels = np.clip(fix(pixels, lq), 0, 1)
        return pixels, probabilities

    def _restore_tiles(self, lq: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Tile by tile. Every tile is told what is wrong with the whole image."""
        whole = self._padded(lq)
        seen = self._seen(lq, whole)

        def restored(tile: np.ndarray) -> np.ndarray:
            padded = self._padded(tile)
            out, _ = self._restored(self._params, padded[None], seen, Streams(self.seed).key("restore"))
            return crop_to(np.asarray(out[0]), *tile.shape[:2])

        # Padded first, as the whole image would be: then the last tiles too begin where windows do.
        pixels = restore_in_tiles(restored, whole, self._tile, self._overlap, self._multiple)
        return crop_to(pixels, *lq.shape[:2]), self._named(self._perceived(self._params, seen))

    def _named(self, probabilities: jax.Array) -> dict[str, float]:
        values = np.asarray(probabilities[0]).tolist()
        return dict(zip(self._tasks, values, strict=True)) if values else {}

    def _padded(self, lq: np.ndarray) -> np.ndarray:
        return pad_to(lq, self._multiple, self._min_size)

    def _seen(self, lq: np.ndarray, padded: np.ndarray | None = None) -> jax.Array:
        """What the program is told of an image as a whole; `padded` where it is at hand."""
        if self._predictor is not None:
            return self._predictor(lq)
        view = self._program.view(lq, self._padded(lq) if padded is None else padded)
        return self._see(self._params, view)

    def _match_input(self, pixels: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Restored colours in the type and shape of the image they come from."""
        if image.ndim == 2:
            pixels = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        if image.dtype in (np.uint8, np.uint16):
            pixels = quantise(pixels, 8 * image.dtype.itemsize, self.rounding)
        pixels = pixels.astype(image.dtype, copy=False)
        if image.ndim == 3 and image.shape[2] == 4:
            return np.concatenate([pixels, image[..., 3:]], -1)
        return pixels


def _program(
    model: MPerceiver | RegressionModel,
    sampler: Sampler | None,
    dtype: str,
    refine: bool,
    task: str | None,
    predicted: bool,
) -> Program:
    given = "predictor" if predicted else "task" if task is not None else ""
    if predicted and task is not None:
        raise ValueError("task, predictor: give one of them")
    if isinstance(model, RegressionModel):
        if task is not None and task not in model.config.tasks:
            raise ValueError(f"task: {task!r} given, one of {', '.join(model.config.tasks)} expected")
        if given and not model.config.is_conditional:
            raise ValueError(f"{given}: {model.config.title} cannot be told what is wrong with an image; leave it out")
        label = None if task is None else model.config.tasks.index(task)
        return Regression(model, dtype, label, predicted=predicted)
    if sampler is None:
        raise ValueError("sampler: MPerceiver needs one")
    if given:
        raise ValueError(f"{given}: MPerceiver predicts what is wrong with an image; leave it out")
    return Diffusion(model, sampler, dtype, refine)


def _check_settings(seed: int, colour: str, rounding: str) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1, not {seed}")
    for name, value, known in (("colour", colour, Colour), ("rounding", rounding, Rounding)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {get_args(known)}, not {value!r}")


def _check_rgb(image: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """The colours of an array as float32 in [0, 1], checked."""
    image = np.asarray(image)
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if not fits or not image.size:
        raise ValueError(f"an image is (height, width, 3), (height, width, 4) or (height, width), not {image.shape}")
    colours = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image[..., :3]
    if np.issubdtype(colours.dtype, np.floating):
        colours = colours.astype(np.float32)
        if not (np.isfinite(colours).all() and colours.min() >= 0 and colours.max() <= 1):
            raise ValueError(
                f"a floating-point image must be finite and in [0, 1]; this one is between {colours.min()} "
                f"and {colours.max()}. Divide by 255 (8 bits) or 65535 (16 bits), or clip it"
            )
    return as_float(colours)

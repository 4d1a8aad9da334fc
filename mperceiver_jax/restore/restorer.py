"""The restorer: a trained model on one device, pictures of any size in, restored pictures out.

A picture is padded at the bottom and right by reflection, seen by the image tower as a
whole, restored as a whole (no tiles) and cut back to its size.
"""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from data_pipelines.pictures import as_float
from data_pipelines.tasks import TASKS
from data_pipelines.transforms import clip_view
from mperceiver_jax.config import Experiment, from_mapping
from mperceiver_jax.diffusion.restoration import Sampler, SamplerName, restore_batch, sampler_of
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.restore.colour import adain, wavelet_fix
from mperceiver_jax.restore.picture_files import Picture, Rounding, crop_to, pad_to, quantise
from mperceiver_jax.restore.trained_model import read_trained_model
from mperceiver_jax.training.stages import to_model_range
from mperceiver_jax.training.workdir import read_config

Colour = Literal["none", "adain", "wavelet"]
AnyPicture = TypeVar("AnyPicture", np.ndarray, Picture)

# Sides are padded to multiples of this many pixels at least, so that few sizes are compiled.
GRANULARITY = 64


class Restoration(NamedTuple):
    """A restored picture, and what the model took to be wrong with it.

    Attributes:
        picture: of the kind that was given.
        probabilities: task name -> probability of that degradation; they sum to one.
    """

    picture: np.ndarray | Picture
    probabilities: dict[str, float]


class Restorer:
    """Restores pictures one at a time. The same picture, seed and settings give the same result, whatever
    was restored before.

    The first picture of every padded size is compiled, which takes longer than restoring it.

    Args:
        model: built abstractly.
        params: every parameter of it, on the device that shall compute.
        sampler: see `diffusion.samplers.DDIM` and `diffusion.dpm_solver.DPMSolver`.
        minimum: pictures are padded to at least so many pixels a side.
        dtype: computed in.
        seed: of the starting noise, 0 to 2**32 - 1.
        refine: decode with the detail refinement module.
        colour: give the result the colours of the degraded picture: `adain`, `wavelet` (see `colour.py`),
            or `none`.
        rounding: to integer pixels, see `quantise`.
        notes: what the user should know about the model, one sentence each.
    """

    def __init__(
        self,
        model: MPerceiver,
        params: Params,
        sampler: Sampler,
        *,
        minimum: int = 512,
        dtype: str = "float32",
        seed: int = 42,
        refine: bool = True,
        colour: Colour = "none",
        rounding: Rounding = "round",
        notes: tuple[str, ...] = (),
    ):
        _check_settings(seed, colour, rounding)
        self.sampler, self.seed, self.refine = sampler, seed, refine
        self.colour, self.rounding, self.notes = colour, rounding, notes
        self._params = params
        self._minimum = minimum
        self._multiple = math.lcm(GRANULARITY, model.config.multiple)
        self._clip_size = model.config.predictor.vision.image_size
        structure, _ = parameters.split(model)
        compute = jnp.dtype(dtype)

        def restored(values, lq, lq_clip, key):
            assembled = parameters.merge(structure, values)
            out, logits = restore_batch(
                assembled, sampler, to_model_range(lq, compute), lq_clip.astype(compute), key, refine=refine
            )
            picture = jnp.clip((out.astype(jnp.float32) + 1) / 2, 0, 1)
            return picture, jax.nn.softmax(logits.astype(jnp.float32))

        def perceived(values, lq_clip):
            _, logits = parameters.merge(structure, values).perceive(lq_clip.astype(compute))
            return jax.nn.softmax(logits.astype(jnp.float32))

        # Each keeps one compiled program per size.
        self._restored, self._perceived = jax.jit(restored), jax.jit(perceived)

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
        priors: str | Path | None = None,
    ) -> "Restorer":
        """The model that a training run left in its workdir, on the default device.

        Takes every stage's last checkpoint. Warns where a stage is unfinished, or the refinement was
        never trained: then pictures are decoded without it.

        Args:
            sampler: `ddim` (the correct schedule), `reference` (the release's) or `dpmpp_2m` (DPM-Solver++,
                for 10 to 25 steps); as configured when None.
            steps: of the sampler; as configured when None.
            priors: the published weights the run started from, where they have moved since.

        Raises:
            FileNotFoundError: there is no run in that directory.
            ValueError: settings out of range, a configuration or priors that cannot be used (`ConfigError`),
                stages without a checkpoint.
            CheckpointError: a checkpoint that cannot be read or does not fit.
        """
        _check_settings(seed, colour, rounding)
        experiment = from_mapping(Experiment, read_config(workdir), f"{Path(workdir) / 'config.json'}")
        if priors is not None:
            experiment = replace(experiment, priors=str(priors))
        name = sampler or experiment.sampler.name
        choice = replace(
            experiment.sampler,
            name=name,
            steps=experiment.sampler.steps if steps is None else steps,
            # A run may have been configured with another sampler, and noise that this one does not draw.
            eta=0.0 if name == "dpmpp_2m" else experiment.sampler.eta,
        )
        chosen = sampler_of(choice)
        model = MPerceiver(experiment.model)
        trained = read_trained_model(workdir, experiment, model)
        notes = trained.notes
        if refine and not trained.refined:
            notes += ("the detail refinement was not trained; pictures are decoded without it",)
        for note in notes:
            warnings.warn(f"{workdir}: {note}", stacklevel=2)
        return cls(
            model,
            trained.params,
            chosen,
            minimum=experiment.restore.minimum,
            dtype=experiment.compute_dtype,
            seed=seed,
            refine=refine and trained.refined,
            colour=colour,
            rounding=rounding,
            notes=notes,
        )

    def __call__(self, picture: AnyPicture) -> AnyPicture:
        """The restored picture; see `restore`."""
        return self.restore(picture).picture  # type: ignore[return-value]

    def restore(self, picture: np.ndarray | Picture) -> Restoration:
        """Restores one picture.

        Args:
            picture: uint8, uint16 or floating-point array in [0, 1], (height, width, 3) RGB, (height, width,
                4) with alpha, or (height, width) grey; or what `read_picture` gives. Alpha is kept as it is.

        Returns:
            The picture with the same shape and type, and the predicted degradations. A grey picture is
            restored as three equal channels; what comes back is their luma.

        Raises:
            ValueError: another type or shape, or values that are not finite or outside [0, 1].
        """
        if isinstance(picture, Picture):
            pixels, probabilities = self._restore(picture.pixels)
            return Restoration(replace(picture, pixels=pixels), probabilities)
        pixels, probabilities = self._restore(_colours(picture))
        return Restoration(self._alike(pixels, picture), probabilities)

    def predict(self, picture: np.ndarray | Picture) -> dict[str, float]:
        """Task name -> probability of that degradation, without restoring; arguments as in `restore`."""
        colours = picture.pixels if isinstance(picture, Picture) else _colours(picture)
        return _named(self._perceived(self._params, self._view(self._padded(colours))))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a picture is computed; every new one is compiled."""
        rows, columns = (-(-max(side, self._minimum) // self._multiple) for side in (height, width))
        return rows * self._multiple, columns * self._multiple

    def _restore(self, lq: Float[np.ndarray, "h w 3"]) -> tuple[np.ndarray, dict[str, float]]:
        padded = self._padded(lq)
        # The key is the seed's alone: no other picture before or after changes this one.
        key = jax.random.key(self.seed)
        out, probabilities = self._restored(self._params, padded[None], self._view(padded), key)
        pixels = crop_to(np.asarray(out[0]), *lq.shape[:2])
        if self.colour != "none":
            fix = adain if self.colour == "adain" else wavelet_fix
            pixels = np.clip(fix(pixels, lq), 0, 1)
        return pixels, _named(probabilities)

    def _padded(self, lq: np.ndarray) -> np.ndarray:
        return pad_to(lq, self._multiple, self._minimum)

    def _view(self, padded: np.ndarray) -> np.ndarray:
        return clip_view(padded, self._clip_size)[None]

    def _alike(self, pixels: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """Restored colours in the type and shape of the picture they come from."""
        if picture.ndim == 2:
            pixels = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        if picture.dtype in (np.uint8, np.uint16):
            pixels = quantise(pixels, 8 * picture.dtype.itemsize, self.rounding)
        pixels = pixels.astype(picture.dtype, copy=False)
        if picture.ndim == 3 and picture.shape[2] == 4:
            return np.concatenate([pixels, picture[..., 3:]], -1)
        return pixels


def _check_settings(seed: int, colour: str, rounding: str) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1, not {seed}")
    for name, value, known in (("colour", colour, Colour), ("rounding", rounding, Rounding)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {get_args(known)}, not {value!r}")


def _colours(picture: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """The colours of an array as float32 in [0, 1], checked."""
    picture = np.asarray(picture)
    fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    if not fits or not picture.size:
        raise ValueError(f"a picture is (height, width, 3), (height, width, 4) or (height, width), not {picture.shape}")
    colours = np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture[..., :3]
    if np.issubdtype(colours.dtype, np.floating):
        colours = colours.astype(np.float32)
        if not (np.isfinite(colours).all() and colours.min() >= 0 and colours.max() <= 1):
            raise ValueError(
                f"a floating-point picture must be finite and in [0, 1]; this one is between {colours.min()} "
                f"and {colours.max()}. Divide by 255 (8 bits) or 65535 (16 bits), or clip it"
            )
    return as_float(colours)


def _named(probabilities: jax.Array) -> dict[str, float]:
    values = np.asarray(probabilities[0]).tolist()
    return {task.name: value for task, value in zip(TASKS, values, strict=True)}

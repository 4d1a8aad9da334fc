"""Images in and out of a restorer: to float32 RGB, and back to the type and shape that was given."""

from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipelines.images import as_float
from mperceiver_jax.image_files import LoadedImage, Rounding, quantise

AnyImage = TypeVar("AnyImage", np.ndarray, LoadedImage, Image.Image)


class Restoration(NamedTuple):
    """A restored image, and how it was restored.

    Attributes:
        image: of the type that was given.
        probabilities: task name -> probability of that degradation, as the model was conditioned on; they sum to one.
            Empty for models that do not predict any.
        strength: how much of the restoration was applied, 0 to 1.
    """

    image: np.ndarray | LoadedImage | Image.Image
    probabilities: dict[str, float]
    strength: float = 1.0


def checked_rgb(image: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """The colours of an array as float32 in [0, 1].

    Raises:
        ValueError: another shape than (h, w), (h, w, 3) or (h, w, 4), another type, or values that are not finite
            or outside [0, 1].
    """
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


def as_given(pixels: Float[np.ndarray, "h w 3"], image: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Restored colours in the type and shape of the image that they come from, with its alpha."""
    if image.ndim == 2:
        pixels = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    if image.dtype in (np.uint8, np.uint16):
        pixels = quantise(pixels, 8 * image.dtype.itemsize, rounding)
    pixels = pixels.astype(image.dtype, copy=False)
    if image.ndim == 3 and image.shape[2] == 4:
        return np.concatenate([pixels, image[..., 3:]], -1)
    return pixels

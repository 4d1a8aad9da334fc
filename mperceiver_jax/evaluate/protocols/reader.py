"""The images of a pair, read one by one as the protocol wants them, and the noise it adds."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.datasets.records import ImageRef
from data_pipelines.images import as_float, decode_image, stated_size
from mperceiver_jax.evaluate.protocols.pair import Pair
from mperceiver_jax.evaluate.protocols.preprocessing import Preprocessing, centre_crop, prepared


class NoiseStream:
    """The noise of `numpy.random.seed(seed)`, one stream through all images, from any position."""

    def __init__(self, seed: int, images: Sequence[Pair]):
        self._states = {}
        stream, position = np.random.RandomState(seed), 0
        for image in images:
            if image.noise is not None:
                # Normals come in pairs and one may be kept: positions are only reached by drawing.
                stream.standard_normal(image.noise[1] - position)
                self._states[image.key] = stream.get_state()
                position = image.noise[1]

    def noisy(self, image: Pair, clean: np.ndarray) -> np.ndarray:
        """uint8 with noise, clipped and truncated as the PromptIR family does."""
        assert image.noise is not None
        stream = np.random.RandomState()
        stream.set_state(self._states[image.key])
        noise = stream.standard_normal(clean.shape)
        return np.clip(clean + image.noise[0] * noise, 0, 255).astype(np.uint8)


def read_pair(
    image: Pair, preprocessing: Preprocessing, stream: NoiseStream
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """(degraded, clean, output) as float32 RGB in [0, 1], cropped and resized by the protocol; None where absent.

    Raises:
        ValueError: a file that cannot be read; names it.
    """
    clean = prepared(_pixels(image.gt), preprocessing)
    degraded = output = None
    if image.noise is not None:
        if clean.dtype != np.uint8:
            raise ValueError(f"{image.gt.path}: noise is added to images of 8 bits; this one has 16")
        degraded = as_float(stream.noisy(image, clean))
    elif image.lq is not None:
        degraded = as_float(prepared(_pixels(image.lq), preprocessing))
    if image.output is not None:
        # Larger than the size measured at: not cropped yet, as `find_pairs` has checked.
        output = as_float(centre_crop(decode_image(image.output), *image.size))
    return degraded, as_float(clean), output


def size_of(image: ImageRef, decode: bool = False) -> tuple[int, int]:
    """(height, width), upright; of a file without decoding it, unless that is asked for.

    Raises ValueError for a file that cannot be read; without decoding, a damaged one may pass.
    """
    if image.block is not None or decode:
        height, width, _ = _pixels(image).shape
        return height, width
    return stated_size(image.path)


def read_truth(pair: Pair) -> np.ndarray:
    """The clean image as it is stored."""
    return _pixels(pair.gt)


def _pixels(image: ImageRef) -> np.ndarray:
    return decode_image(image.path if image.block is None else image.read())

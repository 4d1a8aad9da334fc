"""Geometry of training examples: padding, crops, flips, resizing, and the view that CLIP gets."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from PIL import Image

JPEG_BLOCK = 16
"""Pixels; the side of a block of JPEG whose colours are stored at half the resolution."""
# Normalisation of OpenAI's CLIP (Radford et al. 2021, released preprocessing); RGB in [0, 1].
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


Flips = Literal["none", "horizontal", "dihedral", "dihedral_nonidentity"]
FLIPS = get_args(Flips)


def pad_to(image: np.ndarray, side: int) -> np.ndarray:
    """Reflects the borders until both sides are at least `side`; the image stays in the middle.

    Args:
      image: (height, width, channels), any type, at least 1x1. A side of one pixel is repeated.
    """
    height, width = image.shape[:2]
    rows, columns = max(side - height, 0), max(side - width, 0)
    if not rows and not columns:
        return image
    border = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(image, border, mode="reflect")


def random_crop(images: tuple[np.ndarray, ...], side: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same random (side, side) window of every image, as views; smaller images are padded first."""
    images = tuple(pad_to(image, side) for image in images)
    height, width = _common_size(images)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return tuple(image[top : top + side, left : left + side] for image in images)


def centre_crop(images: tuple[np.ndarray, ...], side: int) -> tuple[np.ndarray, ...]:
    """The same central (side, side) window of every image, as views; smaller images are padded first."""
    images = tuple(pad_to(image, side) for image in images)
    height, width = _common_size(images)
    top, left = (height - side) // 2, (width - side) // 2
    return tuple(image[top : top + side, left : left + side] for image in images)


def flip(images: tuple[np.ndarray, ...], kind: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same random symmetry for every image, as views.

    Args:
      kind: 'none'; 'horizontal' (mirrored with probability 1/2); 'dihedral' (one of the eight symmetries of
        the square, so height and width may change places); 'dihedral_nonidentity' (one of the seven that are not
        the identity, as PromptIR's release draws them).
    """
    if kind == "none":
        return images
    if kind == "horizontal":
        return tuple(image[:, ::-1] for image in images) if rng.integers(2) else images
    if kind not in FLIPS:
        raise ValueError(f"flips must be one of {', '.join(FLIPS)}, not {kind!r}")
    turns, mirror = divmod(int(rng.integers(1 if kind == "dihedral_nonidentity" else 0, 8)), 2)
    turned = tuple(np.rot90(image, turns) for image in images)
    return tuple(image[:, ::-1] for image in turned) if mirror else turned


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bicubic resize (Pillow: the filter widens with the reduction).

    uint8 pixels stay uint8; uint16 and float32 are computed in float32 and come back in their own type.
    Bicubic weights overshoot at edges: values are cut to their range, after the rows and after the columns,
    as Pillow does it with bytes, so that all types agree.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint8:
        reduced = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(reduced.resize((width, height), Image.Resampling.BICUBIC))
    most = 65535 if image.dtype == np.uint16 else 1
    resized = _resize_float(image.astype(np.float32), height, width, most)
    return np.rint(resized).astype(np.uint16) if image.dtype == np.uint16 else resized


def clip_view(image: np.ndarray, size: int) -> np.ndarray:
    """The image as the CLIP image tower wants it.

    The whole image is resized straight to the square, its aspect not kept, so that nothing at the border is
    lost; then normalised with CLIP's mean and deviation. An image of 256 levels gets what Pillow makes of it
    as bytes, on which the published towers were trained; others keep their precision.

    Args:
      image: float32 (height, width, 3) in [0, 1], or the same image as uint8, which is faster.
      size: side of the tower's input in pixels.

    Returns:
      float32 (size, size, 3), about [-1.8, 2.2].
    """
    if image.dtype == np.uint8:
        seen = resize(image, size, size) / np.float32(255)
    elif _has_256_levels(image[:1]) and _has_256_levels(image):  # the first row mostly decides
        seen = resize(np.rint(image * 255).astype(np.uint8), size, size) / np.float32(255)
    else:
        seen = resize(image, size, size)
    return _clip_normalised(seen)


def predictor_view(image: np.ndarray, size: int, kind: str, count: int) -> np.ndarray:
    """What a predictor of degradations sees of an image: `native_views` for the kind 'native', else `clip_view`."""
    return native_views(image, size, count) if kind == "native" else clip_view(image, size)


def native_views(image: np.ndarray, size: int, count: int) -> np.ndarray:
    """Squares of the image at its native resolution, in which fine degradations stay visible.

    They lie on a regular grid over the image, `count` is the number of its cells. Where the image is small the
    squares overlap, and an image smaller than a square is padded by reflection. Corners are multiples of the blocks
    of JPEG, so that the borders of blocks lie at the same places in every square.

    Args:
        image: (height, width, 3), float32 in [0, 1] or bytes.
        size: side of a square in pixels.
        count: number of squares, a square number.

    Returns:
        float32 (count, size, size, 3), normalised with CLIP's mean and deviation.
    """
    image = pad_to(image, size)
    cells = math.isqrt(count)
    tops, lefts = (
        [round(k * (side - size) / (cells - 1)) if cells > 1 else (side - size) // 2 for k in range(cells)]
        for side in image.shape[:2]
    )
    tops, lefts = ([corner // JPEG_BLOCK * JPEG_BLOCK for corner in corners] for corners in (tops, lefts))
    squares = np.stack([image[top : top + size, left : left + size] for top in tops for left in lefts])
    if squares.dtype == np.uint8:
        squares = squares / np.float32(255)
    return _clip_normalised(squares)


def _clip_normalised(images: np.ndarray) -> np.ndarray:
    """Float images (..., width, 3) in [0, 1] with CLIP's mean and deviation, contiguous."""
    # Whole rows at once: numpy repeats its work for every pixel where three channels are the last axis.
    width = images.shape[-2]
    rows = np.ascontiguousarray(images).reshape(*images.shape[:-2], 3 * width)
    return ((rows - np.tile(CLIP_MEAN, width)) / np.tile(CLIP_STD, width)).reshape(images.shape)


def _has_256_levels(image: np.ndarray) -> bool:
    levels = image * 255
    return bool(np.abs(levels - np.rint(levels)).max() < 1e-3)


def _resize_float(image: np.ndarray, height: int, width: int, most: float) -> np.ndarray:
    # Pillow's order: rows first, unless only the columns become fewer pixels.
    columns_first = height < image.shape[0] and width > image.shape[1]
    between = (image.shape[1], height) if columns_first else (width, image.shape[0])
    channels = []
    for k in range(image.shape[2]):
        plane = image[..., k]
        for size in (between, (width, height)):
            resized = Image.fromarray(np.ascontiguousarray(plane))  # mode 'F': no rounding on the way
            plane = np.clip(np.asarray(resized.resize(size, Image.Resampling.BICUBIC)), 0, most)
        channels.append(plane)
    return np.stack(channels, axis=-1)


def _common_size(images: tuple[np.ndarray, ...]) -> tuple[int, int]:
    sizes = {image.shape[:2] for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images that are cropped together must have one size, not {sorted(sizes)}")
    return sizes.pop()

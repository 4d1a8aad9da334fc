"""What a protocol does to an output and its truth before anything is measured."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from mperceiver_jax.evaluate.metrics.full_reference import WindowName, luma
from mperceiver_jax.image_files import quantise


@dataclass(frozen=True)
class Preprocessing:
    """A scoring convention.

    Attributes:
        colour: what PSNR and SSIM see, `rgb` or BT.601 luma, `y`.
        levels: outputs are measured as they are (`float`), after rounding or truncation to 8 bits, or as they are
            stored in files (`stored`: files with their own depth, what a model makes with 8 bits).
        border: pixels cut off every side.
        multiple: outputs and truths are cropped about their centre to multiples of this, before anything else.
        longest: input and truth are resized so that no side exceeds this; None resizes nothing.
        resize_multiple: and then so that both sides are multiples of this.
        window: of SSIM.
        metrics: measured when the user names no others.
    """

    colour: Literal["rgb", "y"] = "rgb"
    levels: Literal["float", "round", "truncate", "stored"] = "round"
    border: int = 0
    multiple: int = 1
    longest: int | None = None
    resize_multiple: int = 1
    window: WindowName = "uniform"
    metrics: tuple[str, ...] = ("psnr", "ssim")

    def __post_init__(self) -> None:
        for name, least in (("border", 0), ("multiple", 1), ("longest", 1), ("resize_multiple", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    def describe(self) -> str:
        """The preprocessing in one line of text."""
        colour = {"rgb": "RGB", "y": "luma (BT.601)"}[self.colour]
        levels = {"float": "not rounded", "round": "rounded to 8 bits", "truncate": "truncated to 8 bits"}
        parts = [colour, f"outputs {levels.get(self.levels, 'as stored')}"]
        if self.longest:
            parts.append(
                f"inputs and truths resized to at most {self.longest} px and multiples of {self.resize_multiple} "
                "(Lanczos)"
            )
        if self.multiple > 1:
            parts.append(f"centre crop to multiples of {self.multiple}")
        parts.append(f"{self.border} px border cut" if self.border else "no border cut")
        window = {"uniform": "7x7 uniform", "gaussian": "11x11 Gaussian"}[self.window]
        return ", ".join(parts) + f", SSIM with {window} windows"


def measured(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """What metrics see of an output or a truth at its full size: float64 (h, w, 3) RGB in [0, 1].

    Args:
        pixels: (h, w, 3) float in [0, 1], clipped; already cropped and resized by the protocol.
    """
    if preprocessing.levels == "float":
        values = np.clip(pixels, 0, 1).astype(np.float64)
    elif preprocessing.levels == "stored":
        # Levels of 8 bits are levels of 16 as well.
        values = quantise(pixels, 16).astype(np.float64) / 65535
    else:
        values = quantise(pixels, 8, preprocessing.levels).astype(np.float64) / 255
    height, width = values.shape[:2]
    cut = preprocessing.border
    return values[cut : height - cut, cut : width - cut]


def in_colour(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """RGB, or its luma, as the preprocessing says."""
    return luma(values) if preprocessing.colour == "y" else values


def prepared_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The size at which an image is restored and measured, before the border is cut."""
    if preprocessing.longest:
        # As WeatherDiffusion's loader: the other side by ceiling, then both up to multiples.
        longer = max(height, width)
        if longer > preprocessing.longest:
            height, width = (-(-side * preprocessing.longest // longer) for side in (height, width))
        step = preprocessing.resize_multiple
        return -(-height // step) * step, -(-width // step) * step
    return (
        height // preprocessing.multiple * preprocessing.multiple,
        width // preprocessing.multiple * preprocessing.multiple,
    )


def prepared(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """An input or a truth, uint8 or uint16, cropped or resized as the protocol does before restoration.

    Raises:
        ValueError: nothing is left of it, or 16 bits are to be resized.
    """
    height, width = prepared_size(pixels.shape[0], pixels.shape[1], preprocessing)
    if not height or not width:
        raise ValueError(f"smaller than the {preprocessing.multiple} pixels that the protocol crops to multiples of")
    if (height, width) == pixels.shape[:2]:
        return pixels
    if not preprocessing.longest:
        return centre_crop(pixels, height, width)
    if pixels.dtype != np.uint8:
        raise ValueError("this protocol resizes images of 8 bits; this one has 16")
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def centre_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image; of an odd rest the smaller half is cut off the top and left."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]

"""Full-reference metrics of single images, on the host in float64: the figures that are reported.

Images are float in [0, 1]. What a paper's protocol does before it measures (8-bit rounding, cropping,
luma) is `evaluate.preprocessings`; the same metrics for batches inside jit are `evaluate.batch_metrics`.
With no such preparation PSNR and SSIM are what the `promptir` family of papers reports: comparable with
PromptIR, AirNet and their successors, not with Y-channel or 8-bit protocols.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.ndimage import correlate1d

WindowName = Literal["uniform", "gaussian"]
C1, C2 = 0.01**2, 0.03**2
# Weights of the five scales of MS-SSIM (Wang et al., 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@dataclass(frozen=True)
class Window:
    """How SSIM averages locally.

    Attributes:
        weights: along one axis, odd in number, summing to one.
        sample: factor from weighted to sample (co)variance.
    """

    weights: tuple[float, ...]
    sample: float

    @property
    def border(self) -> int:
        return len(self.weights) // 2


def _gaussian(size: int, sigma: float) -> tuple[float, ...]:
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


# `uniform` is scikit-image's default; `gaussian` the paper's own (Wang et al., 2004) and MATLAB's.
WINDOWS: dict[str, Window] = {
    "uniform": Window((1 / 7,) * 7, 49 / 48),
    "gaussian": Window(_gaussian(11, 1.5), 1.0),
}


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels jointly, peak 1.

    Args:
        image: (h, w, channels) float in [0, 1]; values outside are clipped, as are truth's.
        truth: of the same shape.

    Returns:
        infinity for equal images.

    Raises:
        ValueError: shapes that differ, or integer pixels.
    """
    image, truth = _prepared(image, truth)
    error = float(np.mean((image - truth) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(image: np.ndarray, truth: np.ndarray, window: WindowName = "uniform") -> float:
    """Structural similarity (Wang et al., 2004), mean over pixels and channels.

    Only windows that lie wholly inside the image count. K1 = 0.01, K2 = 0.03, data range 1.

    Args:
        image: as for `psnr`.
        truth: as for `psnr`.
        window: `uniform` is 7x7 with sample (co)variances (factor 49/48), scikit-image's default;
            `gaussian` is 11x11 with sigma 1.5 and weighted (co)variances, as MATLAB's `ssim_index`.

    Raises:
        ValueError: as `psnr`; and a side shorter than the window.
    """
    image, truth = _prepared(image, truth)
    luminance, structure = _parts(image, truth, window)
    return float((luminance * structure).mean())


def ms_ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Multi-scale structural similarity (Wang et al., 2003): five scales, Gaussian 11x11 windows.

    Channels apart, then their mean; a scale's negative contrast term counts as zero. Between the scales
    2x2 means, an odd last row or column repeated (as MATLAB's and TensorFlow's implementations do).

    Raises:
        ValueError: as `psnr`; and a side below 161 pixels.
    """
    image, truth = _prepared(image, truth)
    if min(image.shape[:2]) < ms_ssim_side():
        raise ValueError(f"ms_ssim: needs sides of {ms_ssim_side()} pixels or more, got {image.shape[:2]}")
    value = np.ones(image.shape[2])
    for scale, exponent in enumerate(SCALES):
        luminance, structure = _parts(image, truth, "gaussian")
        last = scale == len(SCALES) - 1
        term = (luminance * structure if last else structure).mean((0, 1))
        value *= np.maximum(term, 0) ** exponent
        image, truth = _halved(image), _halved(truth)
    return float(value.mean())


def ms_ssim_side() -> int:
    """The shortest side that five scales of an 11-pixel window fit in."""
    return (len(WINDOWS["gaussian"].weights) - 1) * 2 ** (len(SCALES) - 1) + 1


def luma(image: np.ndarray) -> np.ndarray:
    """(..., 3) RGB in [0, 1] to (..., 1) luma of ITU-R BT.601 in its studio range, 16/255 to 235/255.

    What MATLAB's `rgb2ycbcr` gives as Y, divided by 255 and not rounded.
    """
    return (image @ np.array([[65.481], [128.553], [24.966]], image.dtype) + 16) / 255


def ssim_parts(x: Any, y: Any, blur: Callable, sample: float) -> tuple[Any, Any]:
    """SSIM's maps (luminance, contrast and structure); numpy and jax arrays alike.

    Args:
        blur: the local mean of an array.
        sample: see `Window`.
    """
    # Variances do not change when a constant is subtracted, and lose fewer digits to cancellation in float32.
    offset = y.mean((-3, -2), keepdims=True)
    x, y = x - offset, y - offset
    mean_x, mean_y = blur(x), blur(y)
    var_x = sample * (blur(x * x) - mean_x * mean_x)
    var_y = sample * (blur(y * y) - mean_y * mean_y)
    cov = sample * (blur(x * y) - mean_x * mean_y)
    mean_x, mean_y = mean_x + offset, mean_y + offset
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance, (2 * cov + C2) / (var_x + var_y + C2)


def _parts(image: np.ndarray, truth: np.ndarray, name: WindowName) -> tuple[np.ndarray, np.ndarray]:
    window = WINDOWS[name]
    size, border = len(window.weights), window.border
    if min(image.shape[:2]) < size:
        raise ValueError(f"ssim: needs sides of {size} pixels or more, got {image.shape[:2]}")

    def blur(values: np.ndarray) -> np.ndarray:
        rows = correlate1d(values, window.weights, 0)[border : values.shape[0] - border]
        return correlate1d(rows, window.weights, 1)[:, border : values.shape[1] - border]

    return ssim_parts(image, truth, blur, window.sample)


def _halved(image: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels).mean((1, 3))


def _prepared(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, truth = np.asarray(image), np.asarray(truth)
    if image.shape != truth.shape or image.ndim != 3:
        raise ValueError(f"images to compare must have one shape (h, w, channels), got {image.shape}, {truth.shape}")
    if not image.size:
        raise ValueError("images to compare have no pixels; is the border that is cut larger than they are?")
    for values in (image, truth):
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"images to compare must be float in [0, 1], got {values.dtype}")
    return np.clip(image.astype(np.float64), 0, 1), np.clip(truth.astype(np.float64), 0, 1)

"""PSNR and SSIM as the `promptir` family of papers computes them.

Colour images in [0, 1] as float, never rounded to 8 bit, no border crop before PSNR:
these numbers are comparable with PromptIR, AirNet and their successors, not with
Y-channel or 8-bit protocols.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import uniform_filter

WINDOW = 7


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


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), mean over pixels and channels.

    Equals scikit-image's defaults: 7x7 uniform window, sample (co)variances (factor 49/48),
    K1 = 0.01, K2 = 0.03, data range 1, the 3 border pixels of the map left out. Takes what
    `psnr` takes.

    Raises:
        ValueError: as `psnr`; and a side shorter than the window.
    """
    image, truth = _prepared(image, truth)
    if min(image.shape[:2]) < WINDOW:
        raise ValueError(f"ssim: needs sides of {WINDOW} pixels or more, got {image.shape[:2]}")

    def local_mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, size=(WINDOW, WINDOW, 1))

    c1, c2 = 0.01**2, 0.03**2
    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = local_mean(image), local_mean(truth)
    var_x = sample * (local_mean(image * image) - mean_x * mean_x)
    var_y = sample * (local_mean(truth * truth) - mean_y * mean_y)
    cov = sample * (local_mean(image * truth) - mean_x * mean_y)
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    border = WINDOW // 2
    return float((numerator / denominator)[border:-border, border:-border].mean())


def batch_psnr(images: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """PSNR of every image in dB for use inside jit; images in [0, 1], clipped.

    float32; limited to 100 dB, so that equal images do not put infinities into a mean.
    """
    difference = jnp.clip(images.astype(jnp.float32), 0, 1) - jnp.clip(truth.astype(jnp.float32), 0, 1)
    return -10 * jnp.log10(jnp.maximum(jnp.square(difference).mean((1, 2, 3)), 1e-10))


def _prepared(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, truth = np.asarray(image), np.asarray(truth)
    if image.shape != truth.shape or image.ndim != 3:
        raise ValueError(
            f"images to compare must have one shape (h, w, channels), got {image.shape}, {truth.shape}"
        )
    for values in (image, truth):
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"images to compare must be float in [0, 1], got {values.dtype}")
    return np.clip(image.astype(np.float64), 0, 1), np.clip(truth.astype(np.float64), 0, 1)

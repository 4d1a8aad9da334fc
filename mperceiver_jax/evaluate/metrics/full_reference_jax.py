"""Full-reference metrics of batches for use inside jit: PSNR, SSIM and MS-SSIM, one value per image.

float32 on any device, to about 1e-5 what `evaluate.metrics` computes in float64. LPIPS and DISTS, which
need trained weights, are `models.lpips` and `models.dists`. Images are (b, h, w, channels) in [0, 1], clipped.
"""

import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Float

from mperceiver_jax.evaluate.metrics.full_reference import SCALES, WINDOWS, WindowName, ms_ssim_side, ssim_parts


def batch_psnr(images: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """PSNR of every image in dB; limited to 100 dB, so that equal images put no infinities into a mean."""
    images, truth = _clipped(images, truth)
    return -10 * jnp.log10(jnp.maximum(jnp.square(images - truth).mean((1, 2, 3)), 1e-10))


def batch_ssim(
    images: Float[Array, "b h w c"], truth: Float[Array, "b h w c"], window: WindowName = "uniform"
) -> Float[Array, "b"]:
    """SSIM of every image; windows and errors as in `metrics.ssim`."""
    luminance, structure = _parts(*_clipped(images, truth), window)
    return (luminance * structure).mean((1, 2, 3))


def batch_ms_ssim(images: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """MS-SSIM of every image; definition and errors as in `metrics.ms_ssim`."""
    if min(images.shape[1:3]) < ms_ssim_side():
        raise ValueError(f"ms_ssim: needs sides of {ms_ssim_side()} pixels or more, got {images.shape[1:3]}")
    x, y = _clipped(images, truth)
    value = jnp.ones((images.shape[0], images.shape[3]))
    for scale, exponent in enumerate(SCALES):
        luminance, structure = _parts(x, y, "gaussian")
        last = scale == len(SCALES) - 1
        term = (luminance * structure if last else structure).mean((1, 2))
        # A power of zero has an infinite derivative.
        value = value * jnp.where(term > 0, jnp.maximum(term, 1e-12) ** exponent, 0)
        x, y = _halved(x), _halved(y)
    return value.mean(1)


def batch_luma(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
    """BT.601 luma in studio range; see `metrics.luma`."""
    red, green, blue = jnp.split(images.astype(jnp.float32), 3, -1)
    return (65.481 * red + 128.553 * green + 24.966 * blue + 16) / 255


def _clipped(images: Array, truth: Array) -> tuple[Array, Array]:
    if images.shape != truth.shape or images.ndim != 4:
        raise ValueError(
            f"batches to compare must have one shape (b, h, w, channels), got {images.shape}, {truth.shape}"
        )
    return jnp.clip(images.astype(jnp.float32), 0, 1), jnp.clip(truth.astype(jnp.float32), 0, 1)


def _parts(x: Array, y: Array, name: WindowName) -> tuple[Array, Array]:
    window = WINDOWS[name]
    size = len(window.weights)
    if min(x.shape[1:3]) < size:
        raise ValueError(f"ssim: needs sides of {size} pixels or more, got {x.shape[1:3]}")

    def blur(values: Array) -> Array:
        # Shifted sums: exact float32 on every device, where a convolution may compute in bfloat16.
        height, width = values.shape[1] - size + 1, values.shape[2] - size + 1
        add = functools.partial(functools.reduce, operator.add)
        rows = add([w * values[:, k : k + height] for k, w in enumerate(window.weights)])
        return add([w * rows[:, :, k : k + width] for k, w in enumerate(window.weights)])

    return ssim_parts(x, y, blur, window.sample)


def _halved(x: Array) -> Array:
    b, height, width, channels = x.shape
    even = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return even.reshape(b, even.shape[1] // 2, 2, even.shape[2] // 2, 2, channels).mean((2, 4))

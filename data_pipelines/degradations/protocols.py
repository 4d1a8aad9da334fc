"""Published degradations by name, and one draw of them that (seed, index) determines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.degradations import protocol_mioir as mioir
from data_pipelines.degradations.holes import cut_holes
from data_pipelines.degradations.protocol_cdd11 import KINDS, Degradation, cdd11
from data_pipelines.degradations.protocol_promptir import SIGMAS, promptir_noise
from data_pipelines.degradations.protocol_real_esrgan import real_esrgan
from data_pipelines.degradations.wide_range import nearly_clean

NEARLY_CLEAN = "nearly_clean"
"""The entry of `PROTOCOLS` that leaves an image as it is, or almost so; a task made by it is the clean class."""

_MIOIR: dict[str, Callable[..., np.ndarray]] = {
    "sr4": mioir.mioir_sr4,
    "blur": mioir.mioir_blur,
    "noise": mioir.mioir_noise,
    "jpeg": mioir.mioir_jpeg,
    "rain": mioir.mioir_rain,
    "haze": mioir.mioir_haze,
    "dark": mioir.mioir_dark,
}

# Name -> (image, rng) -> image; sizes stay.
PROTOCOLS: Mapping[str, Degradation] = {
    "promptir_noise": promptir_noise,
    **{f"promptir_noise{sigma}": functools.partial(promptir_noise, sigma=sigma) for sigma in SIGMAS},
    **{f"mioir_{name}": make for name, make in _MIOIR.items()},
    **{
        f"mioir_out_{name}": functools.partial(make, distribution="out")
        for name, make in _MIOIR.items()
        if name != "sr4"  # not published
    },
    "real_esrgan": real_esrgan,
    "holes": cut_holes,
    NEARLY_CLEAN: nearly_clean,
    "cdd11": cdd11,
    **{f"cdd11_{kind}": functools.partial(cdd11, kind=kind) for kind in KINDS},
}


def protocol_named(name: str) -> Degradation:
    """The degradation of that name; ValueError that lists the names there are."""
    if name not in PROTOCOLS:
        raise ValueError(f"no degradation is named {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def degraded(name: str, image: np.ndarray, seed: int, index: int) -> np.ndarray:
    """Image number `index` of a degraded set: the same for the same name, seed and index, on any machine.

    Args: image, float32 (height, width, 3) in [0, 1]. Returns the same shape and range.
    """
    return protocol_named(name)(image, np.random.default_rng([seed, index]))

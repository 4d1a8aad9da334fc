"""Noise of the PromptIR family (PromptIR, AM-PromptIR, PIP), in training and test."""

from __future__ import annotations

import numpy as np

from data_pipelines.degradations.fields import check_image

SIGMAS = (15, 25, 50)
QUANTISATIONS = ("truncate", "round", "none")


def promptir_noise(
    image: np.ndarray,
    rng: np.random.Generator | np.random.RandomState,
    *,
    sigma: float | None = None,
    quantise: str = "truncate",
) -> np.ndarray:
    """uint8(clip(clean + sigma N(0, 1), 0, 255)) with float64 noise on 8-bit pixels.

    The release casts to uint8 by truncation, which darkens by half a grey level; that is part of the
    protocol. In training noise comes after crop and augmentation. At test the release draws one numpy stream
    (seed 0) through its files and sigma 15, 25, 50: hand over `np.random.RandomState(0)` and keep it.

    Args:
      image: float32 (height, width, 3) in [0, 1]; taken to 8 bits first.
      rng: source of the noise.
      sigma: of 255 grey levels; default one of 15, 25, 50.
      quantise: 'truncate' (published), 'round', or 'none' (clipped only).

    Returns a new float32 image in [0, 1].
    """
    check_image(image)
    if quantise not in QUANTISATIONS:
        raise ValueError(f"quantise must be one of {', '.join(QUANTISATIONS)}, not {quantise!r}")
    if sigma is None:
        sigma = float(rng.choice(SIGMAS))
    noise = rng.standard_normal(image.shape)
    noisy = np.clip(np.rint(image * np.float32(255)) + sigma * noise, 0, 255)
    if quantise != "none":
        noisy = np.floor(noisy) if quantise == "truncate" else np.rint(noisy)
    return (noisy / 255).astype(np.float32)

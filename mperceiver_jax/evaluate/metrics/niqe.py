"""NIQE (Mittal, Soundararajan, Bovik, 2013): how unlike pristine images the local statistics of an image are.

Written from the paper, in the steps of the authors' MATLAB release: grey levels rounded to 8 bits, blocks
of 96 pixels, two scales. No package ships the authors' model of pristine images (`modelparameters.mat`
of that release; also circulating as `niqe_pris_params.npz`), so the user names the file.
"""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.ndimage import correlate1d
from scipy.special import gamma

BLOCK = 96
FEATURES = 36
# MATLAB's rgb2gray.
_GREY = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])
_SHAPES = np.arange(200, 10001) / 1000
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
_NAMES = (("mu_prisparam", "cov_prisparam"), ("mu_pris_param", "cov_pris_param"), ("pop_mu", "pop_cov"))


class PristineModel(NamedTuple):
    """A Gaussian over the features of pristine images: mean (36,) and covariance (36, 36)."""

    mean: np.ndarray
    covariance: np.ndarray


def read_niqe_model(path: str | Path) -> PristineModel:
    """Reads `modelparameters.mat` or an .npz file with the same two arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no such arrays, or of other sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; NIQE needs the model of pristine images")
    try:
        stored = np.load(path, allow_pickle=False) if path.suffix == ".npz" else loadmat(path)
        for mean, covariance in _NAMES:
            if mean in stored and covariance in stored:
                model = PristineModel(*(np.array(stored[name], np.float64) for name in (mean, covariance)))
                model = model._replace(mean=model.mean.reshape(-1))
                if model.mean.shape != (FEATURES,) or model.covariance.shape != (FEATURES, FEATURES):
                    raise ValueError(f"mean {model.mean.shape}, covariance {model.covariance.shape}")
                return model
    except (ValueError, OSError, NotImplementedError, BadZipFile, MatReadError) as error:
        raise ValueError(f"{path}: no NIQE model of {FEATURES} features ({error})") from error
    raise ValueError(f"{path}: no NIQE model; it should hold {' or '.join(map(str, _NAMES))}")


def niqe(image: np.ndarray, model: PristineModel) -> float:
    """Distance from pristine images: about 2 to 4 for good ones, 10 and more for bad ones.

    Args:
        image: (h, w, 3) float in [0, 1]. Only whole blocks of 96 pixels from the top left count.

    Raises:
        ValueError: a side below 192 pixels: less than two blocks have no covariance worth the name.
    """
    if image.ndim != 3 or min(image.shape[:2]) < 2 * BLOCK:
        raise ValueError(f"niqe: needs (h, w, 3) with sides of {2 * BLOCK} pixels or more, got {image.shape}")
    levels = np.rint(np.clip(image.astype(np.float64), 0, 1) * 255)
    features = niqe_features(np.rint(levels @ _GREY))
    complete = features[np.isfinite(features).all(1)]
    if len(complete) < 2:
        raise ValueError("niqe: the image has no texture (fewer than two blocks could be described)")
    difference = np.nanmean(features, 0) - model.mean
    covariance = (np.cov(complete, rowvar=False) + model.covariance) / 2
    # Few blocks leave it singular: what counts as zero is MATLAB's choice, the rounding error of the largest.
    inverse = np.linalg.pinv(covariance, rcond=FEATURES * np.finfo(np.float64).eps, hermitian=True)
    return float(np.sqrt(difference @ inverse @ difference))


def niqe_features(grey: np.ndarray) -> np.ndarray:
    """(blocks, 36) statistics of a grey image with levels 0 to 255; NaN where a block is flat."""
    rows, columns = (side // BLOCK for side in grey.shape)
    grey = grey[: rows * BLOCK, : columns * BLOCK]
    found = []
    for size in (BLOCK, BLOCK // 2):
        contrast = _normalised(grey)
        blocks = contrast.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(-1, size, size)
        found.append([_block_features(block) for block in blocks])
        grey = _halved(grey)
    return np.concatenate(found, 1)


def _normalised(grey: np.ndarray) -> np.ndarray:
    """Mean subtracted, contrast normalised: locally, under a 7x7 Gaussian."""
    weights = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    weights /= weights.sum()
    blur = lambda x: correlate1d(correlate1d(x, weights, 0, mode="nearest"), weights, 1, mode="nearest")
    mean = blur(grey)
    return (grey - mean) / (np.sqrt(np.abs(blur(grey * grey) - mean * mean)) + 1)


def _halved(grey: np.ndarray) -> np.ndarray:
    """MATLAB's imresize(x, 0.5): antialiased bicubic, mirrored at the edges."""
    distance = np.abs(np.arange(-3.5, 4)) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, far)
    weights /= weights.sum()
    for axis in (0, 1):
        # Eight taps have their centre at index 4; the first output lies between the pixels 0 and 1.
        grey = np.take(correlate1d(grey, weights, axis, mode="reflect"), np.arange(1, grey.shape[axis], 2), axis)
    return grey


def _block_features(block: np.ndarray) -> list[float]:
    shape, left, right = _asymmetric_gaussian(block)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _asymmetric_gaussian(block * np.roll(block, shift, (0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return features


def _asymmetric_gaussian(values: np.ndarray) -> tuple[float, float, float]:
    """(shape, left scale, right scale) of the asymmetric generalised Gaussian, fitted by moments."""
    left, right = values[values < 0], values[values > 0]
    if not left.size or not right.size:
        return float("nan"), float("nan"), float("nan")
    sigma_left, sigma_right = np.sqrt(np.mean(left**2)), np.sqrt(np.mean(right**2))
    ratio = sigma_left / sigma_right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    moment *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_RATIOS - moment) ** 2)])
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(sigma_left * scale), float(sigma_right * scale)

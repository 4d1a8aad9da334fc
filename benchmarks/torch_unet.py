"""diffusers' UNet in PyTorch, as the other side of a comparison. Imports torch."""

import functools
import gc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from benchmarks.timing import Candidate
from benchmarks.torch_device import device_like_ours, wait
from mperceiver_jax import convert
from mperceiver_jax.convert.diffusers.components import unet_config
from mperceiver_jax.models.mperceiver.unet import UNet, UNetConfig


def build(config: UNetConfig) -> Any:
    """diffusers' UNet of these sizes, unmodulated, without values."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(unet_config(config, side=64))  # The side is a note; it builds nothing.


class TorchUNet:
    """diffusers' UNet with our weights, on the device that corresponds to JAX's.

    Args:
        module, config, values: our UNet, unmodulated, and its weights.
        inputs: latent (batch, height, width, channels), timesteps, context.
        dtype: `float32` or `bfloat16`.
    """

    def __init__(
        self,
        module: UNet,
        config: UNetConfig,
        values: Mapping[str, Any],
        inputs: tuple[np.ndarray, np.ndarray, np.ndarray],
        dtype: str,
    ):
        device = device_like_ours()
        kind = getattr(torch, dtype)
        host = {path: np.asarray(value, np.float32) for path, value in values.items()}
        tensors = convert.to_torch(module, host, layout="diffusers")
        self._unet = build(config)
        self._unet.eval()
        # Copied: what NumPy shows of a JAX array must not be written to.
        state = {key: torch.tensor(value).to(device, kind) for key, value in tensors.items()}
        self._unet.load_state_dict(state, strict=True, assign=True)
        self._unet.requires_grad_(True)
        latent, t, context = inputs
        # The layout that PyTorch's convolutions are fastest in on a GPU; on a CPU it makes no difference here.
        self._unet = self._unet.to(memory_format=torch.channels_last)
        planes = torch.from_numpy(np.moveaxis(latent, -1, 1).copy()).to(device, kind)
        self._inputs = (
            planes.contiguous(memory_format=torch.channels_last),
            torch.from_numpy(t).to(device),
            torch.from_numpy(context).to(device, kind),
        )

    def output(self) -> np.ndarray:
        """(batch, height, width, channels) float32."""
        with torch.no_grad():
            out = self._unet(*self._inputs).sample
        return np.moveaxis(out.float().cpu().numpy(), 1, -1)

    def candidates(self, ours: Mapping[str, Candidate], compile_too: bool) -> tuple[dict[str, Candidate], str | None]:
        """(what to time, why `torch.compile` is not among it); FLOP are those of our side."""
        kinds: dict[str, Any] = {"eager": self._unet}
        problem = None
        if compile_too:
            kinds["compiled"] = torch.compile(self._unet)
            try:
                self._forward(kinds["compiled"])
                self._backward(kinds["compiled"])
            except Exception as error:  # torch.compile fails in as many ways as there are toolchains
                del kinds["compiled"]
                problem = f"torch.compile did not work here: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        gc.collect()
        made = {}
        for kind, unet in kinds.items():
            for way, run in (("forward", self._forward), ("forward+backward", self._backward)):
                reference = ours[f"jax unet {way}"]
                made[f"torch {kind} unet {way}"] = Candidate(
                    functools.partial(run, unet), reference.flop, reference.images
                )
        return made, problem

    def _forward(self, unet: Any) -> None:
        with torch.no_grad():
            unet(*self._inputs)
        wait()

    def _backward(self, unet: Any) -> None:
        self._unet.zero_grad(set_to_none=True)
        unet(*self._inputs).sample.float().square().mean().backward()
        wait()

"""MiOIR's prompts: the features of a network are scaled and shifted depending on the degradation of its image.

A small extractor turns a guide into 64 numbers; two linear layers for each point of the network turn these into a
scale and a shift per channel. The guide of *explicit* prompts is a fixed random map of the task, chosen
by a label or by the classifier; the guide of *adaptive* prompts is the degraded image itself.
Source: MiOIR's release. PromptIR with prompts and soft weights of tasks are our own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, Linear
from mperceiver_jax.models.parameters import Init, start_weights
from mperceiver_jax.models.resampling import pad_to_least, pad_to_multiple

Prompts = Literal["plain", "explicit", "adaptive"]

TASKS = ("blur", "noise", "jpeg", "rain", "haze", "low_light", "super_resolution")
"""The order of the task maps and of the classifier's outputs."""

MAP_SIDE = 128
EMBEDDING = 64
GUIDE_CHANNELS: dict[str, int] = {"plain": 0, "explicit": 1, "adaptive": 3}


@dataclass(frozen=True, kw_only=True)
class PromptedConfig:
    """The fields that the configurations of MiOIR's networks share.

    Attributes:
        prompts: `plain` for none, `explicit` from a map of the task, `adaptive` from the image.
        task_maps: file of the task maps for explicit prompts, read whenever the model is used (a run made by
            `convert import` has its own copy); empty for our own.
    """

    prompts: Prompts = "plain"
    task_maps: str = ""


@lru_cache
def task_maps(path: str = "") -> Float[np.ndarray, "7 side side"]:
    """One map in [0, 1) per task, float32: from a `.npy` file, or our own (uniform, from a fixed seed).

    Released weights with explicit prompts need the map of their release, `type7.npy`: 7 x 128 x 128.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else.
    """
    if not path:
        return np.random.default_rng(7).random((len(TASKS), MAP_SIDE, MAP_SIDE), np.float32)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of task maps (.npy, {len(TASKS)} x height x width)")
    try:
        maps = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no .npy file of task maps ({error})") from error
    if maps.ndim != 3 or maps.shape[0] != len(TASKS) or not np.issubdtype(maps.dtype, np.floating):
        raise ValueError(f"{path}: {maps.dtype} {maps.shape} found, floats ({len(TASKS)}, height, width) expected")
    return maps.astype(np.float32)


class PromptExtractor(nnx.Module):
    """Three convolutions of stride 2 with ReLU, then the spatial mean. Guides below 5 pixels a side are extended."""

    def __init__(self, channels: int):
        self.conv1 = Conv(channels, EMBEDDING, 7, stride=2, padding=1)
        self.conv2 = Conv(EMBEDDING, EMBEDDING, stride=2)
        self.conv3 = Conv(EMBEDDING, EMBEDDING, stride=2)

    def __call__(self, guide: Float[Array, "b h w g"]) -> Float[Array, "b 64"]:
        # The first kernel reaches one pixel beyond the guide: of a smaller one nothing would be left to average.
        guide = pad_to_least(guide, 5)
        for conv in (self.conv1, self.conv2, self.conv3):
            guide = jax.nn.relu(conv(guide))
        return guide.astype(jnp.float32).mean((1, 2)).astype(guide.dtype)


def declare(module: nnx.Module, points: Mapping[str, int], init: Init | None = None) -> None:
    """Gives a module the linears `prompt_scale{point}` and `prompt_shift{point}`, 64 -> channels.

    Args:
        init: where their weights start, with biases of zero; None for PyTorch's default.
    """
    for point, channels in points.items():
        for part in ("scale", "shift"):
            linear = Linear(EMBEDDING, channels)
            if init is not None:
                start_weights(linear, "linear", lambda shape: init)
            setattr(module, f"prompt_{part}{point}", linear)


def modulate(
    module: nnx.Module, point: str, y: Float[Array, "b h w c"], embedding: Float[Array, "b 64"] | None
) -> Float[Array, "b h w c"]:
    """y * scale + shift + y with the module's linears of that point; y itself without an embedding."""
    if embedding is None:
        return y
    scale, shift = (getattr(module, f"prompt_{part}{point}")(embedding) for part in ("scale", "shift"))
    return y * scale[:, None, None] + shift[:, None, None] + y


class Prompted(nnx.Module):
    """What MiOIR's networks have in common: any size of image, and a guide that fits the kind of prompts.

    A subclass implements `restore`.

    Args:
        kind: where prompts come from.
        maps: file of the task maps for explicit prompts; empty for our own.
        multiple: `restore` wants sides that are multiples of this.

    Raises:
        ValueError: no such kind of prompts.
    """

    def __init__(self, kind: Prompts, maps: str = "", multiple: int = 1):
        if kind not in GUIDE_CHANNELS:
            raise ValueError(f"prompts: {kind!r} given, one of {sorted(GUIDE_CHANNELS)} expected")
        self.kind, self.maps, self.multiple = kind, maps, multiple

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        tasks: Float[Array, "b 7"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """The restored image, of the same size.

        Args:
            image: RGB in [0, 1].
            tasks: explicit prompts only: weight of every task, in the order of `TASKS`, see `conditions`.
                The release gives the classifier's most probable task all the weight.
            key: for stochastic depth while training, in the networks that have it.

        Raises:
            ValueError: explicit prompts without `tasks`.
        """
        height, width = image.shape[1:3]
        image = self.padded(image)
        return self.restore(image, self.guide(image, tasks), key=key)[:, :height, :width]

    def padded(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b hh ww 3"]:
        """The image with sides that `restore` takes, extended at the bottom and right."""
        return pad_to_multiple(image, self.multiple)

    def guide(
        self, image: Float[Array, "b h w 3"], tasks: Float[Array, "b 7"] | None
    ) -> Float[Array, "b hh ww g"] | None:
        """What the prompt extractors look at."""
        if self.kind == "plain":
            return None
        if self.kind == "adaptive":
            return image
        if tasks is None:
            name = type(self).__name__
            raise ValueError(f"{name} with explicit prompts needs `tasks`: (batch, {len(TASKS)}) weights")
        maps = jnp.asarray(task_maps(self.maps))
        return jnp.einsum("bt,thw->bhw", tasks.astype(jnp.float32), maps)[..., None].astype(image.dtype)

    def restore(
        self,
        image: Float[Array, "b h w 3"],
        guide: Float[Array, "b hh ww g"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """The restored image, for sides that are multiples of `multiple` and a guide given directly."""
        raise NotImplementedError


class Classifier(nnx.Module):
    """Which of the seven tasks an image needs; 188,551 parameters. Sides below 9 pixels are extended."""

    def __init__(self, tasks: int = len(TASKS)):
        # PyTorch counts the activations between, so convolutions have the even numbers.
        convs = [
            Conv(3, 128, stride=3, padding=0),
            Conv(128, 128, stride=3, padding=0),
            Conv(128, 128, 1),
            Conv(128, 128, 1),
            Conv(128, 32, 1),
        ]
        layers: list[Any] = [None] * (2 * len(convs) - 1)
        layers[::2] = convs
        self.CondNet = nnx.List(layers)
        self.lastOut = Linear(32, tasks)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b tasks"]:
        """Logits; `jax.nn.softmax` of them is what the release's network returns."""
        first, *rest = self.CondNet[::2]
        image = first(pad_to_least(image, 9))
        for conv in rest:
            image = conv(jax.nn.leaky_relu(image, 0.1))
        return self.lastOut(image.astype(jnp.float32).mean((1, 2)).astype(image.dtype))

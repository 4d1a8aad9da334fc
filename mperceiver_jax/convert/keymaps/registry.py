"""The layouts there are: which family of names is known for which network."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from mperceiver_jax.convert.keymaps.clip import text_open_clip, text_transformers, vision_transformers
from mperceiver_jax.convert.keymaps.keymap import AssemblyMap, KeyMap
from mperceiver_jax.convert.keymaps.latent_diffusion import (
    RESNET_BLOCK,
    autoencoder_diffusers,
    autoencoder_release,
    ir_adapter_release,
    unet_release,
)
from mperceiver_jax.convert.keymaps.mioir import swinir_release, uformer_release
from mperceiver_jax.convert.keymaps.mperceiver import mperceiver_release
from mperceiver_jax.convert.keymaps.pip import pip_release
from mperceiver_jax.convert.keymaps.promptir import am_promptir_release, promptir_release


def plain(module: Any) -> KeyMap:
    """The family's names are ours."""
    return KeyMap()


LAYOUTS: dict[tuple[str, str], Callable[[Any], KeyMap | AssemblyMap]] = {
    ("UNet", "release"): unet_release,
    ("UNet", "diffusers"): plain,
    ("IRAdapter", "release"): ir_adapter_release,
    ("Modulator", "release"): plain,
    ("ResnetBlock", "release"): lambda module: KeyMap(prefixes=RESNET_BLOCK),
    ("AutoencoderKL", "release"): autoencoder_release,
    ("AutoencoderKL", "diffusers"): autoencoder_diffusers,
    # The keys of OpenCLIP's image tower alone: a whole model has them behind `visual.`.
    ("VisionTower", "open_clip"): plain,
    ("VisionTower", "transformers"): vision_transformers,
    ("TextTower", "open_clip"): text_open_clip,
    ("TextTower", "transformers"): text_transformers,
    ("DegradationPredictor", "release"): plain,
    ("CMInversion", "release"): plain,
    ("MPerceiver", "release"): mperceiver_release,
    ("Restormer", "release"): plain,
    ("PromptIR", "release"): promptir_release,
    ("PromptIR", "mioir"): plain,
    ("SRResNet", "release"): plain,
    ("SwinIR", "release"): swinir_release,
    ("Uformer", "release"): uformer_release,
    ("PromptedRestormer", "release"): plain,
    ("PromptedPromptIR", "release"): plain,
    ("Classifier", "release"): plain,
    ("PIP", "release"): pip_release,
    ("AMPromptIR", "release"): am_promptir_release,
}
"""(class name, layout) -> the map for an instance of that class."""


def keymap(module: nnx.Module, layout: str) -> KeyMap | AssemblyMap:
    """The map of a module's class for a layout.

    Raises:
        ValueError: no such layout for this class; the message lists those there are.
    """
    name = type(module).__name__
    if (name, layout) not in LAYOUTS:
        known = sorted(other for cls, other in LAYOUTS if cls == name)
        raise ValueError(f"{name} has no layout {layout!r}; known: {known}")
    return LAYOUTS[name, layout](module)

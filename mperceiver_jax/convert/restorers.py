"""Key maps of the other restorers. Their modules carry the releases' names; what differs is what is dead.

The released PromptIR and AM-PromptIR declare convolutions that their forward pass never
uses. A layout `release` has them; `mioir` is PromptIR without, as MiOIR stores it.
"""

from typing import Any

from mperceiver_jax.convert.keymaps import KeyMap
from mperceiver_jax.models.promptir import PromptIRConfig

Shapes = dict[str, tuple[int, ...]]


def promptir_release(module: Any) -> KeyMap:
    """PromptIR's release: 548 tensors, six of them dead. A network of other sizes has no counterpart there."""
    full, config = PromptIRConfig.full(), module.config
    if (config.dim, config.prompt_widths) != (full.dim, full.prompt_widths):
        return KeyMap()
    dead: Shapes = {}
    for number, (width, prompt) in enumerate([(64, 64), (128, 128), (256, 320)], 1):
        dead[f"chnl_reduce{number}.weight"] = (width, prompt, 1, 1)
        channels = config.dim * 2 ** (number - 1)
        dead[f"reduce_noise_channel_{number}.weight"] = (channels, channels + width, 1, 1)
    return KeyMap(dead=dead)

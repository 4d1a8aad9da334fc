"""Key map of PIP: its release has the backbone's names and the prompts' side by side."""

from typing import Any

from mperceiver_jax.convert.keymaps.keymap import KeyMap
from mperceiver_jax.models.restorers.pip import PIPConfig
from mperceiver_jax.models.restorers.restormer import RestormerConfig


def pip_release(module: Any) -> KeyMap:
    """PIP's release on Restormer: 612 tensors, three of them dead. Other sizes have no counterpart there."""
    config, full = module.config, PIPConfig.release()
    dead: dict[str, tuple[int, ...]] = {}
    backbone = config.backbone
    if isinstance(backbone, RestormerConfig) and (backbone.dim, config.widths) == (RestormerConfig().dim, full.widths):
        for level, width in enumerate(config.widths):
            channels = backbone.dim << level
            dead[f"reduce_noise_channel_{level + 1}.weight"] = (channels, channels + width, 1, 1)
    return KeyMap(inner=((r"^backbone\.", ""),), dead=dead)

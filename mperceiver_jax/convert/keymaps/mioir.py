"""Key maps of MiOIR's networks. Their modules carry the release's names; what differs is their buffers."""

from typing import Any

from mperceiver_jax.convert.keymaps.keymap import KeyMap
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.mioir.windows import relative_position_index, shift_mask

_TABLE = "relative_position_bias_table"


def uformer_release(module: Any) -> KeyMap:
    """Every window attention carries the index of its table."""
    index = relative_position_index(module.config.window)
    tables = [path for path in parameters.declared(module) if path.endswith(_TABLE)]
    return KeyMap(buffers={path.replace(_TABLE, "relative_position_index"): index for path in tables})


def swinir_release(module: Any) -> KeyMap:
    """The same, and blocks with shifted windows carry their mask for images of `image_size`."""
    config = module.config
    mask = shift_mask(config.image_size, config.image_size, config.window, config.window // 2)
    masks = {
        f"layers.{i}.residual_group.blocks.{j}.attn_mask": mask
        for i, depth in enumerate(config.depths)
        for j in range(1, depth, 2)
    }
    return KeyMap(buffers=masks | dict(uformer_release(module).buffers))

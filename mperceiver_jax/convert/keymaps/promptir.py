"""Key maps of the other restorers, and how a state dict is recognised as one of theirs.

Their modules carry the releases' names; what differs is what is dead. The released
PromptIR and AM-PromptIR declare layers that their forward pass never uses. The layout
`release` has them; `mioir` is PromptIR without, as MiOIR stores it.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

from flax import nnx

from mperceiver_jax.convert.keymaps.keymap import KeyMap
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.am_promptir import AMPromptIR, AMPromptIRConfig
from mperceiver_jax.models.restorers.promptir import PromptIR, PromptIRConfig
from mperceiver_jax.models.restorers.restormer import Restormer, RestormerConfig

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


def am_promptir_release(module: Any) -> KeyMap:
    """AM-PromptIR's release: 1040 tensors, 206 of them dead."""
    dead: Shapes = {}
    for path, variable in parameters.declared(module).items():
        shape = variable.get_value().shape
        if path.endswith(".attn.conv2.weight"):
            block, c = path.removesuffix("conv2.weight"), shape[2]
            for name, weight in (
                ("conv1", (2 * c, c, 1, 1)),
                ("GSA.mask_conv_1", (c, c, 3, 3)),
                ("GSA.mask_conv_2", (c, c, 3, 3)),
            ):
                dead[f"{block}{name}.weight"] = weight
                dead[f"{block}{name}.bias"] = weight[:1]
        elif path.endswith(".prompt_param"):
            dead[path.replace("prompt_param", "conv3x3.weight")] = (shape[2], shape[2], 3, 3)
    for number in (1, 2, 3):
        c = module.config.dim * 2 ** (number - 1)
        dead[f"reduce_noise_channel_{number}.weight"] = (c, 2 * c, 1, 1)
        if number > 1:
            dead[f"reduce_chan_level{number}.weight"] = (c, 2 * c, 1, 1)
    return KeyMap(dead=dead)


def recognise(tensors: Mapping[str, Any]) -> tuple[nnx.Module, str] | None:
    """The restorer that a state dict is of, with its sizes and without values, and the layout; None for others.

    Args:
        tensors: anything with a `shape`, under the releases' keys (without `net.` or `module.` before them).

    What is missing or too much is for `load` to say.
    """
    if "patch_embed.proj.weight" not in tensors or "encoder_level1.0.norm1.body.weight" not in tensors:
        return None
    sizes = _u_shape(tensors)
    if "prompt1.detask_prompt_param" in tensors or any(key.startswith("F_ext_net") for key in tensors):
        return None
    if "prompt1.para1" in tensors:
        sizes["prompt_sides"] = _prompts(tensors, axis=3)
        return AMPromptIR(AMPromptIRConfig(**_text(tensors), **sizes)), "release"
    sizes["heads"] = tuple(_length(tensors, f"{stage}.0.attn.temperature") for stage in (*_LEVELS, "latent"))
    sizes["norm"] = "with_bias" if "encoder_level1.0.norm1.body.bias" in tensors else "bias_free"
    if "prompt1.prompt_param" in tensors:
        sizes |= {"prompt_widths": _prompts(tensors, axis=2), "prompt_sides": _prompts(tensors, axis=3)}
        return PromptIR(PromptIRConfig(**sizes)), "release" if "chnl_reduce1.weight" in tensors else "mioir"
    return Restormer(RestormerConfig(**sizes)), "release"


_LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3")


def _length(tensors: Mapping[str, Any], key: str, axis: int = 0) -> int:
    """A size of a tensor; 1 where it is missing."""
    return int(tensors[key].shape[axis]) if key in tensors and len(tensors[key].shape) > axis else 1


def _u_shape(tensors: Mapping[str, Any]) -> dict[str, Any]:
    def blocks(stage: str) -> int:
        return len({found[1] for key in tensors if (found := re.match(rf"{stage}\.(\d+)\.", key))})

    return {
        "dim": _length(tensors, "patch_embed.proj.weight"),
        "blocks": tuple(blocks(stage) for stage in (*_LEVELS, "latent")),
        "refinement_blocks": blocks("refinement"),
    }


def _prompts(tensors: Mapping[str, Any], axis: int) -> tuple[int, int, int]:
    sizes = tuple(_length(tensors, f"prompt{number}.prompt_param", axis) for number in (1, 2, 3))
    return cast(tuple[int, int, int], sizes)


def _text(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The release's linear takes half as many numbers as it gives; any other width is an embedding's."""
    key = "prompt1.linear_text.weight"
    features, width = _length(tensors, key), _length(tensors, key, 1)
    return {"text_path": "release"} if 2 * width == features else {"text_path": "clip", "text_width": width}

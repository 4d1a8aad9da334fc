"""What stands in `adapters.json`: of every tensor in `adapters.safetensors`, what it is and where it belongs."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.convert.keymaps.keymap import AssemblyMap
from mperceiver_jax.convert.state_dicts import theirs
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver

PARTS = {
    "modulator": "After conv2 of every residual block of the UNet, before the block's input is added: a = "
    "ReLU(mlp_shared.0(c)), gamma = mlp_gamma(a), beta = mlp_beta(a), n = param_free_norm(h), a group norm; "
    "h becomes {modulated}. c is the ir_adapter's map of the level's size. `module` is the residual block, in "
    "the names of diffusers' UNet in unet/.",
    "ir_adapter": "From the degraded image's scaled latent, the timestep and softmax(logits) to one map of "
    "features for each level of the UNet, finest first.",
    "cm_inv": "Cross-modal inversion: the image's embedding, projected, reshaped to tokens and normalised, "
    "goes through one self-attention for each class; the results are image-dependent words of the caption.",
    "tp": "Learned words of the caption, (classes, tokens, width). A caption is the start token, {words}, the end "
    "token, padding. The context is the mean of the classes' last_hidden_state of text_encoder/, weighted by "
    "softmax(logits).",
    "predictor": "Logits of the degradations: fc2(ReLU(fc1(image_embeds))), with image_embeds from "
    "image_encoder/, of the whole degraded image resized (bicubic, antialiased) and normalised as for CLIP.",
    "drm": "Detail refinement, a U-Net on blocks of 2x2 pixels of the degraded and the decoded image and of the "
    "encoder's features taps.i: decoded + mask * (degraded - decoded) + residual, with images in [-1, 1]. Not part of "
    "the public release; our own design.",
    "text_encoder": "Kept so that nothing is lost; no part of what is computed. text_encoder/ ends before it.",
}
ROLES = (
    (r"\.spade\.param_free_norm\.", "group norm of the residual branch"),
    (r"\.spade\.mlp_shared\.", "3x3 convolution of the features, before the ReLU"),
    (r"\.spade\.mlp_gamma\.", "3x3 convolution that gives gamma"),
    (r"\.spade\.mlp_beta\.", "3x3 convolution that gives beta"),
    (r"^ir_adapter\.visual_prompt$", "visual prompts, (scales, classes, 1, tokens, width)"),
    (r"^ir_adapter\.time_embedding\.", "embedding of the timestep"),
    (r"^ir_adapter\.(input_blocks|middle_block)\.", "trunk, which extracts the maps"),
    (r"^ir_adapter\.prompt_attns\.", "attention from a scale's map to its visual prompts"),
    (r"^ir_adapter\.norm1\.", "norm of a scale's map, before the attention to the prompts"),
    (r"^ir_adapter\.norm2\.", "norm of a scale's visual prompts"),
    (r"^ir_adapter\.fea_tran\.", "residual block from a scale's map to the width of the features"),
    (r"^cm_inv\.proj\.", "projection of the embedding into tokens"),
    (r"^cm_inv\.norm\.", "norm of the tokens"),
    (r"^cm_inv\.attns\.", "self-attention of one class"),
    (r"^tp$", "learned words"),
    (r"^predictor\.fc[12]\.", "linear of the predictor's head"),
    (r"^drm\.conv_in\.", "3x3 convolution of the unshuffled images, degraded before decoded"),
    (r"^drm\.taps\.", "1x1 convolution of the encoder's features, added at the level of their size"),
    (r"^drm\.(down|up)_blocks\..*\.degradation\.", "linear from the probabilities to scale and shift"),
    (r"^drm\.(down|up)_blocks\.", "3x3 convolution of a residual block"),
    (r"^drm\.down\.", "2x2 convolution with stride 2"),
    (r"^drm\.up\.", "1x1 convolution before the pixel shuffle"),
    (r"^drm\.(residual|mask)\.", "3x3 convolution of the output, before the pixel shuffle"),
    (r"^text_encoder\.transformer\.", "a block that is not run"),
    (r"^text_encoder\.(text_projection|logit_scale)$", "from CLIP's own training; not used"),
)
"""(regular expression of our paths, what such a tensor is); the first that is found counts."""


def describe(model: MPerceiver, names: AssemblyMap, paths: Iterable[str], dtype: str) -> dict[str, Any]:
    """The content of `adapters.json`.

    Args:
        names: under which `paths` are written; the release's.
    """
    config, variables = model.config, parameters.declared(model)
    forms = {"release": "n * (1 + gamma) + beta", "residual": "h + n * gamma + beta"}
    words = ["the learned words", "the words of cm_inv"]
    known = {
        "modulated": forms[config.unet.modulator_form],
        "words": " then ".join(words if config.token_order == "t_cm" else words[::-1]),
    }
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(paths, key=list(variables).index):
        hollow = np.broadcast_to(np.False_, variables[path].get_value().shape)
        for key, tensor in theirs(names, path, variables[path].kind, hollow).items():
            tensors[key] = {
                "part": _part(path),
                "meaning": next(role for pattern, role in ROLES if re.search(pattern, path)),
                "shape": list(tensor.shape),
                "dtype": dtype,
            }
            if ".spade." in path:
                tensors[key]["module"] = path.removeprefix("unet.").partition(".spade.")[0]
    used = {entry["part"] for entry in tensors.values()}
    return {
        "what": "The parts of an MPerceiver that diffusers and transformers have no class for. Names and shapes "
        "are those of the public release; weights are stored as PyTorch stores them.",
        "parts": {part: text.format(**known) for part, text in PARTS.items() if part in used},
        "prediction": config.prediction,
        "tensors": tensors,
        "model": to_mapping(config),
    }


def _part(path: str) -> str:
    return "modulator" if ".spade." in path else path.partition(".")[0]

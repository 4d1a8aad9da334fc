"""Detect what a file of tensors holds from its keys."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter

from data_pipelines.messages import shorten_list
from mperceiver_jax.checkpoints.model_parts import Part, optional_groups, part_of
from mperceiver_jax.convert.formats.torch_files import StoredTensor
from mperceiver_jax.convert.keymaps.registry import keymap
from mperceiver_jax.convert.state_dicts import Found, match
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver


@dataclass(frozen=True)
class Family:
    """A way in which models are published.

    Attributes:
        title: name of the kind in messages.
        signature: regular expression; the family is this one if a key begins so.
        modules: (dotted name of the module in our model, what stands before its keys, its layout).
    """

    title: str
    signature: str
    modules: tuple[tuple[str, str, str], ...]


# The first whose signature fits. The keys of a whole model are recognised by their prefixes.
FAMILIES = (
    Family(
        "a checkpoint of the MPerceiver release",
        r"structcond_stage_model\.|(CM_Inv|image_proj)\.|tp$|classifier\.(model|fc[12])\.|drm\.",
        (("", "", "release"),),
    ),
    Family(
        "a Stable Diffusion checkpoint (CompVis)",
        r"model\.diffusion_model\.|first_stage_model\.|cond_stage_model\.",
        (("", "", "release"),),
    ),
    Family("the release's degradation predictor", r"fc[12]\.(weight|bias)$", (("predictor", "", "release"),)),
    Family("an autoencoder (CompVis)", r"(encoder|decoder)\.mid\.", (("vae", "", "release"),)),
    Family("an autoencoder of diffusers", r"(encoder|decoder)\.(down|up)_blocks\.", (("vae", "", "diffusers"),)),
    Family("a UNet of diffusers", r"(down|up)_blocks\.", (("unet", "", "diffusers"),)),
    # Whichever of the two towers is not there is left out, as a part that is absent.
    Family(
        "a CLIP model of transformers",
        r"(text|vision)_model\.",
        (("predictor.model", "", "transformers"), ("text_encoder", "", "transformers")),
    ),
    Family(
        "a CLIP image tower of transformers",
        r"embeddings\.(patch|class)_embedding",
        (("predictor.model", "", "transformers"),),
    ),
    Family(
        "a CLIP text tower of transformers", r"embeddings\.token_embedding", (("text_encoder", "", "transformers"),)
    ),
    Family(
        "an OpenCLIP model",
        r"visual\.",
        (("predictor.model", "visual.", "open_clip"), ("text_encoder", "", "open_clip")),
    ),
    Family("an OpenCLIP text tower", r"token_embedding\.", (("text_encoder", "", "open_clip"),)),
    Family("an OpenCLIP image tower", r"class_embedding$", (("predictor.model", "", "open_clip"),)),
)


def recognise(keys: Collection[str], where: str) -> Family:
    """The family whose keys these are.

    Raises:
        ValueError: none that is known; names some of the keys.
    """
    for family in FAMILIES:
        if any(re.match(family.signature, key) for key in keys):
            return family
    known = sorted({family.title for family in FAMILIES})
    shown = shorten_list(sorted(keys))
    raise ValueError(f"{where}: keys of no known layout ({shown}); known are {', '.join(known)}")


def find_parts(model: MPerceiver, tensors: Mapping[str, StoredTensor], where: str) -> dict[str, Found]:
    """{our path: where its tensors are} of everything that a file holds; reads no values.

    Raises:
        ValueError: an unknown layout, a part that is there by halves, unexpected keys, other shapes; names
            `where` and the keys.
    """
    family = recognise(tensors, where)
    found: dict[str, Found] = {}
    for name, prefix, layout in family.modules:
        module = attrgetter(name)(model) if name else model
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        try:
            found |= match(module, own, layout, optional_groups(model), f"{name}." if name else "", prefix)
        except ValueError as error:
            raise ValueError(f"{where} looks like {family.title}, but: {error}") from error
    if not found:
        raise ValueError(f"{where} looks like {family.title}, but holds nothing of it")
    return found


def left_over(tensors: Mapping[str, StoredTensor], found: Mapping[str, Found]) -> list[str]:
    """The keys, as the file has them, of what no part takes: schedule tables, losses, averages (`model_ema.`)."""
    taken = {tensor.key for one in found.values() for tensor in one.tensors}
    return [tensor.key for tensor in tensors.values() if tensor.key not in taken]


def named_parts(model: MPerceiver, tensors: Mapping[str, StoredTensor], where: str) -> dict[Part, list[StoredTensor]]:
    """The tensors of each part that a file holds, by name alone, whatever their shape; for messages.

    Raises:
        ValueError: an unknown layout.
    """
    held: dict[Part, list[StoredTensor]] = {}
    for name, prefix, layout in recognise(tensors, where).modules:
        module = attrgetter(name)(model) if name else model
        names = keymap(module, layout)
        own = {names.canonical(k.removeprefix(prefix)): v for k, v in tensors.items() if k.startswith(prefix)}
        for path in parameters.declared(module):
            there = [own[key] for key in names.keys(path) if key in own]
            if there:
                held.setdefault(part_of(f"{name}.{path}" if name else path), []).extend(there)
    return held

"""The parts of a full model: which parameters they are, where they are published, and which may be absent."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from data_pipelines.messages import shorten_list
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restoration_model import RestorationModel

_SD = "Stable Diffusion 2.1-base"
_OPEN_CLIP = "OpenCLIP ViT-H/14 (laion2b_s32b_b79k)"
_RAIL = "CreativeML Open RAIL++-M (Stable Diffusion 2.1)"


@dataclass(frozen=True)
class Part:
    """Parameters that are published, or trained, together: all of them are there or none.

    Attributes:
        title: for messages.
        pattern: regular expression of the paths.
        needed: no training can start without it; otherwise it starts from initial values.
        source: where it is published.
        licence: of those weights, as their publishers state it.
    """

    title: str
    pattern: str
    needed: bool
    source: str
    licence: str


MODULATORS = r"unet\..*\.spade\."

PARTS = (
    Part("UNet", rf"(?!{MODULATORS})unet\.", True, _SD, _RAIL),
    Part("autoencoder", r"vae\.", True, _SD, _RAIL),
    Part(
        "text tower", r"text_encoder\.", True, f"{_SD}, {_OPEN_CLIP}", f"MIT (OpenCLIP), or {_RAIL} from its repository"
    ),
    Part("image tower", r"predictor\.model\.", True, _OPEN_CLIP, "MIT (OpenCLIP)"),
    Part(
        "dual branch (modulators, IR-Adapter, CM inversion, textual prompts)",
        rf"{MODULATORS}|ir_adapter\.|cm_inv\.|tp$",
        False,
        "a checkpoint of the authors' release, or an export of yours",
        "that of the checkpoint; the authors' code has parts under CC BY-NC-SA 4.0 and S-Lab's licence",
    ),
    Part(
        "predictor head",
        r"predictor\.fc[12]\.",
        False,
        "a checkpoint of the authors' release, or an export of yours",
        "that of the checkpoint",
    ),
    Part("detail refinement", r"drm\.", False, "an export of yours", "yours"),
)


def part_of(path: str) -> Part:
    """The part that a parameter belongs to."""
    return next(part for part in PARTS if re.match(part.pattern, path))


def optional_groups(model: RestorationModel) -> tuple[str, ...]:
    """What a file may lack, each pattern as a whole: a part; and what published towers have but no model runs."""
    return (*model.config.unused_parameters, *(part.pattern for part in PARTS))


def missing_parts(model: RestorationModel, paths: Collection[str]) -> list[str]:
    """One sentence for each part that a training needs and `paths` lack, and each that is half there."""
    ignored = re.compile("|".join(model.config.unused_parameters))
    of_part: dict[Part, list[str]] = {part: [] for part in PARTS}
    for path in parameters.declared(model):
        if not ignored.match(path):
            of_part[part_of(path)].append(path)
    problems = []
    for part, declared in of_part.items():
        missing = [path for path in declared if path not in paths]
        if len(missing) == len(declared):
            if part.needed and declared:
                problems.append(f"the {part.title} is missing; it is in {part.source}")
        elif missing:
            problems.append(
                f"the {part.title} is half there: {len(missing)} of {len(declared)} parameters are missing, "
                + shorten_list(sorted(missing), 10)
            )
    return problems

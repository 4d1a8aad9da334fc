"""The settings of a restorer."""

from dataclasses import dataclass
from typing import Literal, get_args

from mperceiver_jax.diffusion.restoration import SamplerName
from mperceiver_jax.image_files import Rounding

Colour = Literal["none", "adain", "wavelet"]


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    """How images are restored. A field left at None takes what the training run configured.

    Attributes:
        sampler: of MPerceiver: `ddim` (the correct schedule), `reference` (the release's) or `dpmpp_2m`
            (DPM-Solver++, for 10 to 25 steps).
        steps: of the sampler.
        seed: of the initial noise, 0 to 2**32 - 1.
        refine: decode with the detail refinement module of MPerceiver.
        colour: give the result the colours of the degraded image: `adain` or `wavelet` (see `restore.colour`), or
            `none`.
        rounding: to integer pixels, see `image_files.quantise`.
        task: name of the degradation, for models that take it as input; None predicts it.
        tile: side in pixels of the tiles in which an image is restored, see `restore.tiling`; 0 restores whole images,
            None chooses: tiles for large images where the model has no global attention, else whole images.
        overlap: pixels that neighbouring tiles share.
        min_size: images are padded to at least so many pixels a side.
        dtype: of the computation, `float32` or `bfloat16`.

    Raises:
        ValueError: a field out of range; names it.
    """

    sampler: SamplerName | None = None
    steps: int | None = None
    seed: int = 42
    refine: bool = True
    colour: Colour = "none"
    rounding: Rounding = "round"
    task: str | None = None
    tile: int | None = None
    overlap: int = 64
    min_size: int | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: 0 to 2**32 - 1, not {self.seed}")
        if self.colour not in get_args(Colour):
            raise ValueError(f"colour: one of {', '.join(get_args(Colour))}, not {self.colour!r}")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"rounding: one of {', '.join(get_args(Rounding))}, not {self.rounding!r}")

"""The settings of a restorer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.diffusion.restoration import Sampler, SamplerName, sampler_of
from mperceiver_jax.image_files import Rounding
from mperceiver_jax.restore.controls import check_controls

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
        strength: 0 leaves the image as it is, 1 takes the restoration, values between blend them; or a number for each
            of some tasks, such as {"derain": 0.5}, which counts with the probability of that degradation.
        detail: 0 to 1, how much of the diffusion's own detail MPerceiver keeps against the fidelity of its refinement;
            1 is what `refine=False` gives.
        degradations: probabilities of degradations that take the place of the prediction, such as {"dehaze": 0.7,
            "denoise": 0.3}, by the name of the task or of the degradation. What is missing to one is clean where the
            model knows that; otherwise they are scaled to a sum of one.
        only, skip: tasks that alone are restored, or that are not.
        feather: standard deviation in pixels by which the edge of a mask is softened.

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
    strength: float | Mapping[str, float] = 1.0
    detail: float = 0.0
    degradations: Mapping[str, float] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    feather: float = 8.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: 0 to 2**32 - 1, not {self.seed}")
        if self.colour not in get_args(Colour):
            raise ValueError(f"colour: one of {', '.join(get_args(Colour))}, not {self.colour!r}")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"rounding: one of {', '.join(get_args(Rounding))}, not {self.rounding!r}")
        check_controls(self.strength, self.detail, self.degradations, self.only, self.skip, self.feather)


def sampler_for(experiment: Experiment, settings: RestoreSettings) -> Sampler | None:
    """The sampler of MPerceiver; None for networks that restore in one pass.

    Raises:
        ValueError: a sampler for a network that has none, or settings out of range.
    """
    if not experiment.model.has_sampler:
        if settings.sampler or settings.steps is not None:
            raise ValueError(f"sampler, steps: {experiment.title} has no sampler; one pass restores an image")
        return None
    configured = experiment.sampler
    name = settings.sampler or configured.name
    steps = configured.steps if settings.steps is None else settings.steps
    # A run may have been configured with another sampler, and noise that this one does not draw.
    return sampler_of(replace(configured, name=name, steps=steps, eta=0.0 if name == "dpmpp_2m" else configured.eta))

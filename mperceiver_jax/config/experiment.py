"""An experiment's configuration: mappings at the edge, frozen dataclasses inside.

Config files (`configs/*.py`) return an `ml_collections.ConfigDict` built by
`to_mapping`; `from_mapping` turns it into the dataclasses below. Every error names the
field by its full dotted path.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ml_collections import ConfigDict

from data_pipelines.config import PipelineConfig
from data_pipelines.tasks import TASK_SETS, TASKS, Task, with_new_tasks
from mperceiver_jax.config.schema import from_mapping as from_mapping
from mperceiver_jax.config.schema import to_mapping as to_mapping
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models.mperceiver.model import MPerceiverConfig
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.models.restorers.registry import RegressionConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a curriculum.

    Attributes:
        tasks: names of the tasks trained on; usually those of the phase before and one more.
        steps: updates.
        period: of the optimizer's schedule, where the phase has another than the stage; 0 for the stage's.
    """

    tasks: tuple[str, ...]
    steps: int
    period: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps")
        _at_least(self, 0, "period")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: a phase needs at least one, and each once, not {', '.join(self.tasks) or 'none'}")


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        steps: updates; 0 leaves the stage out.
        batch_size: examples per update over all devices.
        crop: side of the square crops; 0 takes the data's own.
        accumulation: micro-batches per update.
        ema_decay: moving average of the trained parameters, used for everything after training; 0 is off.
        optimizer: see `OptimizerConfig`.
        tasks: names of the tasks that are trained on; empty for all of the data's.
        trainable: regular expression of parameter paths; of what the stage can train, only those are; empty for all.
        curriculum: sequential learning: phases that take the place of the stage, each from where the one before
            ended, with a fresh optimizer and schedule; `steps` is then their sum, or 0 to leave the stage out.
    """

    steps: int
    batch_size: int = 8
    crop: int = 0
    accumulation: int = 1
    ema_decay: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tasks: tuple[str, ...] = ()
    trainable: str = ""
    curriculum: tuple[PhaseConfig, ...] = ()

    def __post_init__(self) -> None:
        _at_least(self, 0, "steps", "crop")
        total = sum(phase.steps for phase in self.curriculum)
        if self.curriculum and self.steps not in (0, total):
            raise ValueError(f"steps: the phases of the curriculum make {total} updates, not {self.steps}")
        _at_least(self, 1, "batch_size", "accumulation")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size: {self.batch_size} does not divide by accumulation {self.accumulation}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: each once, not {', '.join(self.tasks)}")
        try:
            re.compile(self.trainable)
        except re.error as error:
            raise ValueError(f"trainable: {self.trainable!r} is not a regular expression ({error})") from error
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: at least 0 and below 1, not {self.ema_decay}")


@dataclass(frozen=True)
class LossConfig:
    """The choices among losses that the specification leaves open.

    Attributes:
        predictor: `focal` or `cross_entropy`.
        focal_gamma: exponent of the focal loss.
        train_tower: the predictor stage also trains the image tower (where none is published at that size).
        train_cm_inv: the dual-branch stage trains the CM inversion.
        kl_weight: weight of the autoencoder's KL term, per latent element.
        lpips_weight, lpips_net: perceptual term of the DRM stage; without its weights it is left out, with a warning.
        gan_weight: factor on the adaptive weight of the DRM's adversarial term; 0 leaves it out.
        gan_start: DRM step at which the adversarial term starts.
        drm_latents: latents that the DRM stage decodes: those of the ground truth with noise (`perturbed_gt`), or
            those that the finished dual branch restores within each update (`online`), by the configured sampler.
        drm_noise_std: largest standard deviation of the noise of `perturbed_gt`.
        regression: `l1`; `charbonnier_fft`: Charbonnier + `fft_weight` times the spectrum's; `smooth_l1`.
        fft_weight: see `regression`.
        condition_source: condition of a conditional restorer during training: the true task (`label`, as the releases
            are trained), or the prediction of its classifier (`classifier`), which exposes the network to the
            classifier's errors; the true task where the network has no classifier.
        double_softmax: the loss of a restorer's classifier takes probabilities as if they were logits, as in
            MiOIR's release.
        regularizer_weight: of a network's own regulariser (PIP's angles between the vectors of classes).
    """

    predictor: Literal["focal", "cross_entropy"] = "focal"
    focal_gamma: float = 2.0
    train_tower: bool = False
    train_cm_inv: bool = True
    kl_weight: float = 1e-6
    lpips_weight: float = 0.1
    lpips_net: Literal["vgg", "alex"] = "vgg"
    gan_weight: float = 0.0
    gan_start: int = 0
    drm_latents: Literal["perturbed_gt", "online"] = "perturbed_gt"
    drm_noise_std: float = 0.2
    regression: Literal["l1", "charbonnier_fft", "smooth_l1"] = "l1"
    condition_source: Literal["label", "classifier"] = "label"
    double_softmax: bool = False
    fft_weight: float = 0.01
    regularizer_weight: float = 0.002

    def __post_init__(self) -> None:
        _at_least(self, 0, *(f.name for f in fields(self) if f.type is float))


@dataclass(frozen=True)
class SamplerConfig:
    """How restored latents are sampled.

    Attributes:
        name: `ddim` (the correct schedule), `reference` (the release's), or `dpmpp_2m` (DPM-Solver++ of second
            order, for 10 to 25 steps).
        steps: calls of the denoiser.
        eta: noise drawn within `ddim` and `reference`, 0 (none) to 1 (as ancestral sampling).
    """

    name: Literal["ddim", "reference", "dpmpp_2m"] = "ddim"
    steps: int = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps: between 1 and 1000, not {self.steps}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: between 0 and 1, not {self.eta}")
        if self.name == "dpmpp_2m" and self.eta:
            raise ValueError(f"eta: the sampler 'dpmpp_2m' draws no noise and needs eta 0, not {self.eta}")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save: every `every` updates and at a stage's end; the newest `keep` stay, and the `keep_best` best."""

    every: int = 1000
    keep: int = 3
    keep_best: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "keep")
        _at_least(self, 0, "keep_best")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation.

    Attributes:
        every: also evaluate every so many updates within a stage; 0 only at its end.
        per_task: held-out images for each task.
        batch_size: images at a time.
        samples: rows of the before/after sheets per task.
    """

    every: int = 0
    per_task: int = 8
    batch_size: int = 8
    samples: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 0, "every", "samples")
        _at_least(self, 1, "per_task", "batch_size")


@dataclass(frozen=True)
class RestoreConfig:
    """How the `restore` command treats images where its user does not say it.

    Attributes:
        min_size: images are padded by reflection to at least so many pixels a side.
        tile: side of the tiles of larger images, a multiple of 64; 0 leaves it to the model: tiles where it has no
            global attention.
    """

    min_size: int = 512
    tile: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "min_size")
        if self.tile and (self.tile < 128 or self.tile % 64):
            raise ValueError(f"tile: 0, or a multiple of 64 of at least 128, not {self.tile}")


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a run, apart from the machine it runs on.

    Attributes:
        variant: name of the variant, for messages and the workdir.
        model: MPerceiver's, or that of a restorer by regression.
        variant_reason: why this variant was chosen, shown in the first line.
        pretrained: published weights to start from (see docs/paper_scale.md); required unless `from_scratch`.
        from_scratch: the variant trains its own autoencoder, CLIP towers and diffusion prior.
        source: workdir of the finished run that this one adapts to a new task (`training.adaptation`), or "".
        cache: directory for the outputs of the frozen towers for `cached_examples` fixed crops of the dual-branch
            stage, which then trains on those alone and runs without VAE and CLIP; "" encodes new crops at every
            step.
        compute_dtype: `float32` or `bfloat16`; trained parameters stay float32, frozen ones are stored in this dtype.
        stages: by name, in the order they run.
        on_nonfinite: `stop` at the first non-finite loss, or `skip` up to `max_skipped` such steps per stage.
        log_every: updates between two log lines.
    """

    variant: str
    model: MPerceiverConfig | RegressionConfig
    data: PipelineConfig
    stages: Mapping[str, StageConfig]
    losses: LossConfig = field(default_factory=LossConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    variant_reason: str = ""
    pretrained: str = ""
    from_scratch: bool = False
    source: str = ""
    cache: str = ""
    cached_examples: int = 4096
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 23
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10
    log_every: int = 50

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "max_skipped")
        _at_least(self, 1, "log_every", "cached_examples")
        view, data_view = self.model.predictor_view, self.data.clip_view
        if view and (view == "native") != (data_view == "native"):
            raise ValueError(
                f"data.clip_view: {data_view!r}, but model.predictor.view is {view!r}; give 'native' to both or to "
                "neither"
            )
        if self.restore.tile and not self.model.is_local:
            raise ValueError(f"restore.tile: {self.title} attends to the whole image and cannot restore tiles; give 0")
        if self.pretrained and not self.model.has_published_weights:
            raise ValueError(f"pretrained: {self.title} has no pretrained weights")

    def check_pretrained(self) -> None:
        """Raises ConfigError where the experiment starts from published weights and names none."""
        if not self.from_scratch and not self.pretrained:
            raise ConfigError(
                f"config.pretrained: the variant {self.variant!r} starts from published weights; give them with "
                "--config.pretrained=PATH (see docs/paper_scale.md), or take the variant that needs none: "
                "--config=configs/allinone.py:small"
            )

    @property
    def mperceiver(self) -> MPerceiverConfig:
        """The model's configuration, for what only MPerceiver has."""
        if not isinstance(self.model, MPerceiverConfig):
            raise ConfigError(f"config.model: this is for MPerceiver only, the model is {self.model.title}")
        return self.model

    @property
    def title(self) -> str:
        """The model's name, for display."""
        return self.model.title

    @property
    def warning(self) -> str:
        """Warning shown at start and in the report; empty if none."""
        return self.model.warning

    @property
    def checkpoint_metadata(self) -> dict[str, str]:
        """The fields of the model that checkpoints record."""
        return self.model.checkpoint_metadata

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the model's labels stand for: those of a task set, then `data.new_tasks`.

        Raises:
            ConfigError: a regression model names tasks that no task set has in this order.
        """
        if not self.model.tasks:
            return self._with_new_tasks(TASKS)
        for tasks in map(self._with_new_tasks, TASK_SETS.values()):
            if tuple(task.name for task in tasks) == self.model.tasks:
                return tasks
        known = "; ".join(f"{name}: {', '.join(task.name for task in tasks)}" for name, tasks in TASK_SETS.items())
        raise ConfigError(f"config.model.tasks: {', '.join(self.model.tasks)}; whole task sets are {known}")

    def _with_new_tasks(self, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return with_new_tasks(tasks, self.data.new_tasks, self.data.degradations)

    def build(self) -> RestorationModel:
        """The model, built abstractly."""
        return self.model.build()


def to_config_dict(experiment: Experiment) -> ConfigDict:
    """The experiment as a config file returns it: every field can be set from the command line."""
    return ConfigDict(to_mapping(experiment))


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            finite = " and finite" if isinstance(value, float) else ""
            raise ValueError(f"{name}: at least {least}{finite}, not {value}")

"""The two kinds of model, and the properties of their configurations that the rest of the program relies on."""

from collections.abc import Mapping
from typing import Protocol

from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.models.restorers.registry import RegressionConfig, RegressionModel

RestorationModel = MPerceiver | RegressionModel
"""A model, built abstractly. Its `config` is a `ModelConfig`."""


class ModelConfig(Protocol):
    """The configuration of a model of either kind. Code that asks it needs no test of the kind."""

    @property
    def title(self) -> str:
        """The model's name, for display."""

    @property
    def warning(self) -> str:
        """A sentence that a user of the model should know; empty where there is none."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that can train it."""

    @property
    def main_stage(self) -> str:
        """The stage that teaches the model to restore; without it a run has no model."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order of the classes; empty for MPerceiver's nine and `data.new_tasks`."""

    @property
    def classes(self) -> int:
        """Number of tasks that the model distinguishes."""

    @property
    def predictor_view(self) -> str:
        """The view of the image that its predictor receives, as `data.clip_view` names it; empty without one."""

    @property
    def has_published_weights(self) -> bool:
        """Whether training can start from published weights (`config.pretrained`)."""

    @property
    def has_sampler(self) -> bool:
        """Whether it restores by sampling and not in one pass."""

    @property
    def is_local(self) -> bool:
        """Whether no part attends to all positions of an image, so that tiles are restored as the whole image is."""

    @property
    def restoration_note(self) -> str:
        """A sentence for reports on how an image was restored; empty where the sampler says it."""

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Regular expressions of the parameters that are declared, as published files have them, and never used."""

    @property
    def checkpoint_metadata(self) -> Mapping[str, str]:
        """The fields that checkpoints record."""

    def build(self) -> RestorationModel:
        """The model, built abstractly."""


CONFIGS: tuple[type[ModelConfig], ...] = (MPerceiverConfig, RegressionConfig)
"""Both kinds of configuration; the type checker holds that they have everything above."""

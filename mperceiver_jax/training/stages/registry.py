"""The stages by name."""

from collections.abc import Callable

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import STAGES, base
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training.stages.base import Stage
from mperceiver_jax.training.stages.drm import DrmStage
from mperceiver_jax.training.stages.dual_branch import DualBranchStage
from mperceiver_jax.training.stages.predictor import PredictorStage
from mperceiver_jax.training.stages.prior import PriorStage
from mperceiver_jax.training.stages.regression import RegressionStage
from mperceiver_jax.training.stages.vae import VaeStage

_CLASSES: dict[str, Callable[[str, Experiment, RestorationModel], Stage]] = {
    "vae": VaeStage,
    "prior": PriorStage,
    "predictor": PredictorStage,
    "dual_branch": DualBranchStage,
    "drm": DrmStage,
    "regression": RegressionStage,
}


def is_for_model(name: str, model: RestorationModel) -> bool:
    """Whether the stage trains models of this kind."""
    return base(name) in model.config.stages


def build_stage(name: str, experiment: Experiment, model: RestorationModel) -> Stage:
    """The stage, or phase of one, for a model (built abstractly).

    Raises:
        ValueError: no such stage.
    """
    if base(name) not in _CLASSES:
        raise ValueError(f"stages.{name}: no such stage; the stages are {', '.join(STAGES)}")
    return _CLASSES[base(name)](name, experiment, model)

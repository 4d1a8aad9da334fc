"""The stages by name."""

from collections.abc import Callable

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import STAGES, base
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.training.run_context import Model
from mperceiver_jax.training.stages.base import Stage
from mperceiver_jax.training.stages.drm import DrmStage
from mperceiver_jax.training.stages.dual_branch import DualBranchStage
from mperceiver_jax.training.stages.predictor import PredictorStage
from mperceiver_jax.training.stages.prior import PriorStage
from mperceiver_jax.training.stages.regression import RegressionStage
from mperceiver_jax.training.stages.vae import VaeStage

_CLASSES: dict[str, Callable[[str, Experiment, Model], Stage]] = {
    "vae": VaeStage,
    "prior": PriorStage,
    "predictor": PredictorStage,
    "dual_branch": DualBranchStage,
    "drm": DrmStage,
    "regression": RegressionStage,
}


def is_for_model(name: str, model: Model) -> bool:
    """Whether the stage trains models of this kind."""
    return (_CLASSES.get(base(name)) is RegressionStage) == isinstance(model, RegressionModel)


def build_stage(name: str, experiment: Experiment, model: Model) -> Stage:
    """The stage, or phase of one, for a model (built abstractly).

    Raises:
        ValueError: no such stage.
    """
    if base(name) not in _CLASSES:
        raise ValueError(f"stages.{name}: no such stage; the stages are {', '.join(STAGES)}")
    return _CLASSES[base(name)](name, experiment, model)

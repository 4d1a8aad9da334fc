"""The stages of a run that have a checkpoint, and the check that their parameters belong to a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.messages import shorten_list
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.initial_params import Which, checkpoint_folder
from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import STAGES, base, expand_curricula, needed_stages


class TrainedStage(NamedTuple):
    """The last checkpoint of a stage.

    Attributes:
        step: updates made.
        planned: updates that the configuration asks for; 0 where it no longer has the stage.
        averaged: whether it holds a moving average in addition to the last parameters.
        frozen_fingerprint: fingerprint of the frozen parameters it was trained with.
    """

    name: str
    step: int
    planned: int
    averaged: bool
    frozen_fingerprint: str | None

    @property
    def unfinished(self) -> str | None:
        """A sentence that the stage is unfinished; None where it is finished."""
        if self.step >= self.planned:
            return None
        return f"the stage {self.name} is unfinished, at update {self.step} of {self.planned}"

    def check(
        self,
        workdir: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
    ) -> None:
        """Checks that the trained parameters belong to the model and to the frozen parameters.

        Args:
            shapes: of all parameters of the model.
            frozen: all parameters that the stage did not train, in the dtype in which the run held them.

        Raises:
            CheckpointError: they do not; says why.
        """
        where = f"checkpoint {self.step} of {self.name} in {workdir}"
        wrong = [path for path, value in sorted(trained.items()) if shapes.get(path) != value.shape]
        if wrong:
            raise CheckpointError(
                f"{where} does not fit this model: {shorten_list(wrong)} are unknown or "
                "have another shape; it may have been written by another version"
            )
        if self.frozen_fingerprint is not None and (identity := fingerprint(frozen)) != self.frozen_fingerprint:
            raise CheckpointError(
                f"{where} was trained with other frozen parameters than those given now (fingerprint "
                f"{self.frozen_fingerprint[:12]}, now {identity[:12]}): give the pretrained weights it was trained with"
            )


def trained_stages(workdir: str | Path, experiment: Experiment) -> list[TrainedStage]:
    """The stages that have a checkpoint, in the order in which they are trained.

    Raises:
        ValueError: stages that a usable model needs have none; names all of them.
    """
    stages = expand_curricula(experiment).stages
    planned = {name: config.steps for name, config in stages.items() if config.steps}
    phases = {name: [phase for phase in stages if base(phase) == name] or [name] for name in STAGES}
    found = {
        name: stage
        for phase in phases.values()
        for name in phase
        if (stage := _last(workdir, name, planned.get(name, 0)))
    }
    if missing := [name for name in needed_stages(experiment) if name not in found]:
        raise ValueError(
            f"{workdir}: the run cannot be used yet; there is no checkpoint of {', '.join(missing)} "
            f"(there are: {', '.join(found) or 'none'}). Let the training finish: the same command continues "
            "it where it stopped"
        )
    # The parameters of a stage are those of the last phase that was started.
    lasting = {base(name): name for name in found}
    return [_of_all(stage, phases[base(name)], planned) for name, stage in found.items() if lasting[base(name)] == name]


def uses_ema(workdir: str | Path, stages: Sequence[TrainedStage], which: Which | None) -> bool:
    """Whether moving averages are among the parameters that are taken from these stages.

    Args:
        which: `ema`, the averages, or `last`, the last parameters; None takes the averages of the stages that
            keep one.

    Raises:
        ValueError: averages are requested, and no stage kept one.
    """
    kept = any(stage.averaged for stage in stages)
    if which == "ema" and not kept:
        raise ValueError(f"{workdir}: no stage kept a moving average; take its last parameters, --weights=last")
    return kept and which != "last"


def _of_all(stage: TrainedStage, phases: Sequence[str], planned: Mapping[str, int]) -> TrainedStage:
    """The last phase that was started, unfinished where later phases are missing."""
    left = sum(planned.get(name, 0) for name in phases[phases.index(stage.name) + 1 :])
    return stage._replace(planned=stage.planned + left)


def _last(workdir: str | Path, name: str, planned: int) -> TrainedStage | None:
    folder = checkpoint_folder(workdir, name)
    if not folder.is_dir():
        return None
    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            return None
        metadata = checkpoints.metadata(step)
        return TrainedStage(name, step, planned, bool(metadata.get("ema")), metadata.get("frozen_fingerprint"))

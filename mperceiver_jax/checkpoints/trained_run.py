"""Which stages of a run have a checkpoint to take weights from, and whether what they trained belongs here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.initial_params import Which, checkpoint_folder
from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import expanded
from mperceiver_jax.models.restorers.registry import RegressionConfig
from mperceiver_jax.training.stages.registry import STAGES, base


class TrainedStage(NamedTuple):
    """The last checkpoint of a stage.

    Attributes:
        step: updates made.
        planned: updates that the configuration asks for; 0 where it no longer has the stage.
        averaged: whether it holds a moving average beside the last parameters.
        frozen_fingerprint: fingerprint of the frozen parameters it was trained with.
    """

    name: str
    step: int
    planned: int
    averaged: bool
    frozen_fingerprint: str | None

    @property
    def unfinished(self) -> str | None:
        """A sentence that says so, if it is."""
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
        """That what the stage trained belongs to the model, and to the parameters around it.

        Args:
            shapes: of all parameters of the model.
            frozen: all parameters that the stage did not train, in the dtype in which the run held them.

        Raises:
            CheckpointError: it does not; says in what.
        """
        where = f"checkpoint {self.step} of {self.name} in {workdir}"
        wrong = [path for path, value in sorted(trained.items()) if shapes.get(path) != value.shape]
        if wrong:
            raise CheckpointError(
                f"{where} does not fit this model: {', '.join(wrong[:5])} ({len(wrong)} in all) are unknown or "
                "of another shape; was it written by another version?"
            )
        if self.frozen_fingerprint is not None and (identity := fingerprint(frozen)) != self.frozen_fingerprint:
            raise CheckpointError(
                f"{where} was trained with other frozen parameters than those given now (fingerprint "
                f"{self.frozen_fingerprint[:12]}, now {identity[:12]}): give the pretrained weights it was trained with"
            )


def trained_stages(workdir: str | Path, experiment: Experiment) -> list[TrainedStage]:
    """The stages that have a checkpoint, in the order in which they are trained.

    Raises:
        ValueError: one that a usable model needs has none; names all of them.
    """
    stages = expanded(experiment).stages
    planned = {name: config.steps for name, config in stages.items() if config.steps}
    regression = isinstance(experiment.model, RegressionConfig)
    phases = {name: [phase for phase in stages if base(phase) == name] or [name] for name in STAGES}
    found = {
        name: stage
        for phase in phases.values()
        for name in phase
        if (stage := _last(workdir, name, planned.get(name, 0)))
    }
    # Of a stage's phases the first makes it usable, and the last that was begun counts.
    needed = [
        phases[name][0]
        for name in STAGES
        if (name == "dual_branch" and not regression) or (phases[name][0] in planned and name != "drm")
    ]
    if missing := [name for name in needed if name not in found]:
        raise ValueError(
            f"{workdir}: nothing to restore with yet; no checkpoint of {', '.join(missing)} "
            f"(there are: {', '.join(found) or 'none'}). Let the training finish: the same command goes on "
            "where it stopped"
        )
    lasting = {base(name): name for name in found}
    return [_of_all(stage, phases[base(name)], planned) for name, stage in found.items() if lasting[base(name)] == name]


def uses_ema(workdir: str | Path, stages: Sequence[TrainedStage], which: Which | None) -> bool:
    """Whether moving averages are among what these stages give.

    Args:
        which: `ema`, the averages, or `trained`, the last parameters; None takes the averages of the stages that
            keep one.

    Raises:
        ValueError: averages are asked for, and no stage kept one.
    """
    kept = any(stage.averaged for stage in stages)
    if which == "ema" and not kept:
        raise ValueError(f"{workdir}: no stage kept a moving average; take its last parameters, --weights=last")
    return kept and which != "last"


def _of_all(stage: TrainedStage, phases: Sequence[str], planned: Mapping[str, int]) -> TrainedStage:
    """The last phase that was begun; one that others should have followed is unfinished."""
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

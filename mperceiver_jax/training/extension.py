"""More updates for the stages of a run that was started with fewer.

A stage continues from its last checkpoint. What was trained after it, with it frozen, would no longer fit; hence a
stage cannot grow once a later one has a checkpoint.
"""

from pathlib import Path

from etils import epath

from mperceiver_jax.checkpoints.directory import complete_steps
from mperceiver_jax.checkpoints.initial_params import checkpoint_folder
from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.config.phases import expand_curricula, stages_of
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.optim.optimizer import learning_rate_at


def grown_fields(workdir: Path, given: Experiment, extend: bool) -> tuple[str, ...]:
    """The fields of numbers of updates that are larger in a configuration than in that of the run in `workdir`.

    Args:
        given: the configuration, with curricula as they were given.
        extend: allow it although the learning rate depends on the number of updates.

    Returns:
        dotted names such as `stages.drm.steps`; empty where there is no run yet. Stages with a curriculum are
        left out: the numbers are those of their phases.

    Raises:
        ConfigError: a stage cannot grow, or only with `extend`; says why.
    """
    if not (workdir / "config.json").is_file():
        return ()
    try:
        stored = from_mapping(Experiment, read_config(workdir))
    except ValueError:
        return ()  # The check of the workdir reports it.
    grown = [
        name
        for name, stage in given.stages.items()
        if name in stored.stages and not stage.curriculum and stage.steps > stored.stages[name].steps
    ]
    for name in grown:
        if _last_step(workdir, name):
            _check_schedule(stored, given, name, extend)
        _check_later_stages(workdir, given, name)
    return tuple(f"stages.{name}.steps" for name in grown)


def _check_schedule(stored: Experiment, given: Experiment, name: str, extend: bool) -> None:
    """Raises ConfigError where the updates made so far would have had other learning rates, unless asked for."""
    optimizer, before, now = given.stages[name].optimizer, stored.stages[name].steps, given.stages[name].steps
    # A warm-up is shortened to the length of its stage.
    independent = optimizer.schedule in ("constant", "cosine") and optimizer.warmup_steps <= before
    if optimizer.schedule == "restarts" or (independent and (optimizer.schedule == "constant" or optimizer.horizon)):
        return
    if not extend:
        last = learning_rate_at(optimizer, before, before - 1)
        following = learning_rate_at(optimizer, now, before)
        raise ConfigError(
            f"config.stages.{name}.steps: {before} in the workdir, {now} here, and the learning rate "
            f"({optimizer.schedule}) depends on it. With --extend the stage continues on the schedule of {now} "
            f"updates: the rate at update {before} was {last:.3g} and continues at {following:.3g}"
        )


def _check_later_stages(workdir: Path, given: Experiment, name: str) -> None:
    order = stages_of(expand_curricula(given))
    for later in order[order.index(name) + 1 :]:
        if _last_step(workdir, later):
            raise ConfigError(
                f"config.stages.{name}.steps: the stage {later} has been trained on what {name} left, in "
                f"{checkpoint_folder(workdir, later)}. To train {name} further, delete that folder and "
                f"{workdir / 'stages' / later}.json, or take another --workdir"
            )


def _last_step(workdir: Path, name: str) -> int:
    """The update of a stage's last checkpoint; 0 without one."""
    return max(complete_steps(epath.Path(checkpoint_folder(workdir, name))), default=0)

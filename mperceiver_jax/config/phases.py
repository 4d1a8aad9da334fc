"""The stages of training by name: their order, the phases of a curriculum, and the data of each.

    vae          the autoencoder (only where none is published at that size)
    prior        the latent diffusion prior on clean images (likewise)
    predictor    the degradation predictor
    dual_branch  modulators, IR-Adapter, textual prompts and CM inversion; all else frozen
    drm          the detail refinement module; encoder and decoder frozen
    regression   the only stage of models that map the degraded image straight to the restored one

Sequential learning (MiOIR) trains a stage in phases, each on its own tasks and with a fresh optimizer and
schedule. To the rest of the program phases are stages named `regression.1`, `regression.2` and so on, each with
its own checkpoints; a phase starts from the last parameters and the moving average of the one before.
"""

from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.config import PipelineConfig
from mperceiver_jax.config.experiment import Experiment, PhaseConfig, StageConfig
from mperceiver_jax.random_streams import Streams

ORDER = ("vae", "prior", "predictor", "dual_branch", "drm")
"""MPerceiver's stages."""
STAGES = (*ORDER, "regression")
OPTIONAL = ("drm",)
"""Stages without which a model can be used."""


def base(name: str) -> str:
    """The stage that a phase belongs to: `regression` for `regression.2`; a stage without phases is its own."""
    return name.split(".")[0]


def phase_number(name: str) -> int:
    """2 for `regression.2`; 0 for a stage without phases."""
    _, dot, number = name.partition(".")
    return int(number) if dot else 0


def phase_before(name: str) -> str | None:
    """The phase that a phase starts from; None for the first, and for stages without phases."""
    number = phase_number(name)
    return f"{base(name)}.{number - 1}" if number > 1 else None


def expand_curricula(experiment: Experiment) -> Experiment:
    """The experiment with the phases of every curriculum in place of its stage. Idempotent."""
    stages: dict[str, StageConfig] = {}
    for name, stage in experiment.stages.items():
        if not stage.curriculum:
            stages[name] = stage
            continue
        for number, phase in enumerate(stage.curriculum, 1):
            optimizer = replace(stage.optimizer, period=phase.period or stage.optimizer.period)
            steps = phase.steps if stage.steps else 0
            stages[f"{name}.{number}"] = replace(
                stage, steps=steps, tasks=phase.tasks, curriculum=(), optimizer=optimizer
            )
    return replace(experiment, stages=stages)


def needed_stages(experiment: Experiment) -> list[str]:
    """The names of the stages without which the model of a run cannot be used; of phases only the first is needed."""
    stages = expand_curricula(experiment).stages
    firsts = [name for name in stages if base(name) in STAGES and phase_number(name) <= 1]
    needed = [name for name in firsts if stages[name].steps and base(name) not in OPTIONAL]
    main = experiment.model.main_stage
    if main not in map(base, needed):
        # No published weights hold its parameters.
        needed.append(next((name for name in firsts if base(name) == main), main))
    return sorted(needed, key=lambda name: STAGES.index(base(name)))


def stages_of(experiment: Experiment) -> list[str]:
    """The names of the stages that run, in order.

    Raises:
        ValueError: a stage that does not exist.
    """
    unknown = sorted(name for name in experiment.stages if base(name) not in STAGES)
    if unknown:
        raise ValueError(f"config.stages.{unknown[0]}: no such stage; the stages are {', '.join(STAGES)}")
    planned = [name for name, config in experiment.stages.items() if config.steps]
    return sorted(planned, key=lambda name: (STAGES.index(base(name)), phase_number(name)))


def data_config(experiment: Experiment, name: str) -> PipelineConfig:
    """The data of a stage: its own batch size, crop, tasks and seed, all else as configured.

    Raises:
        ValueError: names a field of the data that cannot be used.
    """
    stage, data = experiment.stages[name], experiment.data
    crop = stage.crop or data.crop
    seed = Streams(experiment.seed).integer(f"data/{name}")
    if stage.tasks:
        weights = {task: data.weights.get(task, 1.0) for task in stage.tasks}
        data = replace(data, weights=weights, pairs={k: v for k, v in data.pairs.items() if k in weights})
    return replace(data, batch_size=stage.batch_size, crop=crop, seed=seed)


def cumulative(order: Sequence[str], steps: int, last_steps: int) -> tuple[PhaseConfig, ...]:
    """Phases of which each adds the next task of `order`.

    Args:
        steps: updates of every phase but the last.
        last_steps: updates of the last, which has all tasks.
    """
    return tuple(
        PhaseConfig(tuple(order[:number]), last_steps if number == len(order) else steps)
        for number in range(1, len(order) + 1)
    )

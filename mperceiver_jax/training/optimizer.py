"""AdamW with warm-up, a constant or cosine schedule, and clipping by the global norm."""

from dataclasses import dataclass

import numpy as np
import optax

from mperceiver_jax.training import schedules, spike_limiter


@dataclass(frozen=True)
class OptimizerConfig:
    """Attributes:
    learning_rate: the peak, after the warm-up.
    schedule: `constant`, or `cosine` down to `final_fraction` of the peak; `epochs` and `restarts` as other systems
        have them, see `schedules`.
    warmup_steps: linear rise from zero.
    period: updates in an epoch (`epochs`), or between restarts (`restarts`).
    horizon: updates after which a cosine is at its end; 0 for the stage's last.
    start_fraction, lag: of `epochs`.
    spike_limit: updates of batches with a loss above so many times the usual count less, see
        `spike_limiter`; 0 switches that off.
    betas, eps, weight_decay: AdamW's; the decay is decoupled and applies to every trained tensor.
    clip_norm: largest global gradient norm; 0 switches clipping off.
    """

    learning_rate: float = 1e-4
    schedule: str = "constant"
    final_fraction: float = 0.0
    warmup_steps: int = 0
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    period: int = 0
    horizon: int = 0
    start_fraction: float = 0.0
    lag: int = 0
    spike_limit: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine", "epochs", "restarts"):
            raise ValueError(f"schedule: 'constant', 'cosine', 'epochs' or 'restarts', not {self.schedule!r}")
        if self.schedule in ("epochs", "restarts") and self.period < 1:
            raise ValueError(f"period: the schedule {self.schedule!r} needs a number of updates, not {self.period}")
        if len(self.betas) != 2:
            raise ValueError(f"betas: two numbers, not {self.betas}")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a stage of `steps` steps.

    A warm-up longer than the stage is shortened to it.
    """
    if config.schedule == "epochs":
        return schedules.by_epoch(
            config.learning_rate,
            config.period,
            config.warmup_steps,
            config.horizon or steps,
            config.start_fraction,
            config.lag,
        )
    if config.schedule == "restarts":
        return schedules.with_restarts(config.learning_rate, config.period, config.final_fraction)
    warmup = min(config.warmup_steps, steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            config.learning_rate, max((config.horizon or steps) - warmup, 1), config.final_fraction
        )
    else:
        after = optax.constant_schedule(config.learning_rate)
    if not warmup:
        return after
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a stage; its state exists for the trained parameters only."""
    parts = [spike_limiter.limit_spikes(config.spike_limit)] if config.spike_limit else []
    parts += [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(
        optax.adamw(
            learning_rate(config, steps),
            b1=config.betas[0],
            b2=config.betas[1],
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    )
    return optax.chain(*parts)


def learning_rate_at(config: OptimizerConfig, steps: int, step: int) -> float:
    """The learning rate of one step, for the log."""
    return float(np.asarray(learning_rate(config, steps)(step)))

"""AdamW or Muon with warm-up, a learning-rate schedule, and clipping by the global norm."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from mperceiver_jax.optim import schedules, spike_limiter


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a stage.

    Attributes:
        name: `adamw`, or `muon`: kernels move along their orthogonalised momentum, which trains a network from
            scratch in far fewer updates; biases and norms are trained by AdamW with Nesterov momentum.
        learning_rate: the peak, after the warm-up.
        schedule: `constant`, or `cosine` down to `final_fraction` of the peak; `epochs` and `restarts` are those of
            other systems, see `schedules`.
        final_fraction: see `schedule`.
        warmup_steps: updates of a linear rise from zero.
        betas, eps, weight_decay: AdamW's (Muon has its usual momentum of 0.95); the decay is decoupled and applies
            to every trained tensor.
        clip_norm: largest global gradient norm; 0 switches clipping off.
        period: updates in an epoch (`epochs`), or between restarts (`restarts`).
        horizon: updates after which a cosine is at its end; 0 for the stage's last.
        start_fraction, lag: see `schedules.by_epoch`.
        spike_limit: a loss (of restorers by regression: the image distance) above this multiple of the usual has a
            smaller effect, see `spike_limiter`; 0 switches that off.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine", "epochs", "restarts"] = "constant"
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
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"name: 'adamw' or 'muon', not {self.name!r}")
        if self.schedule not in ("constant", "cosine", "epochs", "restarts"):
            raise ValueError(f"schedule: 'constant', 'cosine', 'epochs' or 'restarts', not {self.schedule!r}")
        if self.schedule in ("epochs", "restarts") and self.period < 1:
            raise ValueError(f"period: the schedule {self.schedule!r} needs a number of updates, not {self.period}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: two numbers of at least 0 and below 1, not {self.betas}")
        for name in ("learning_rate", "weight_decay", "clip_norm", "spike_limit", "warmup_steps", "horizon", "lag"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: at least 0 and finite, not {getattr(self, name)}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps: above 0 and finite, not {self.eps}")
        for name in ("final_fraction", "start_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: between 0 and 1, not {getattr(self, name)}")


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
    parts.append((_muon if config.name == "muon" else _adamw)(config, learning_rate(config, steps)))
    return optax.chain(*parts)


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=config.betas[0], b2=config.betas[1], eps=config.eps, weight_decay=config.weight_decay)


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for every tensor that maps inputs to outputs, NAdamW for the others.

    Kernels have their outputs last; all other axes are inputs. Updates are scaled to a root mean
    square of 0.2 (Liu et al., 2025), so that learning rates for AdamW are a good start for it.
    """

    def inputs_and_outputs(tensor: jax.Array) -> MuonDimensionNumbers | None:
        return MuonDimensionNumbers(tuple(range(tensor.ndim - 1)), tensor.ndim - 1) if tensor.ndim > 1 else None

    return muon(
        rate,
        consistent_rms=0.2,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(inputs_and_outputs, params),
        adam_b1=config.betas[0],
        adam_b2=config.betas[1],
        adam_weight_decay=config.weight_decay,
    )


def learning_rate_at(config: OptimizerConfig, steps: int, step: int) -> float:
    """The learning rate of one step, for logs."""
    return float(np.asarray(learning_rate(config, steps)(step)))

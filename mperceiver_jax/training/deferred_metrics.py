"""Fetch the metrics of a step one step late, so that the host never waits for the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import base
from mperceiver_jax.optim.optimizer import learning_rate_at
from mperceiver_jax.progress import Progress
from mperceiver_jax.training.metric_log import MetricWriter


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient was not finite; the message says where, and what is safe."""


@dataclass
class StageStats:
    """Statistics of a stage that survive interruptions: seconds, skipped updates, first and last loss."""

    seconds: float = 0.0
    skipped: int = 0
    first_loss: float | None = None
    last_loss: float | None = None

    def updated(self, seconds: float) -> dict[str, Any]:
        """The fields, with the seconds of this process added."""
        return {**vars(self), "seconds": self.seconds + seconds}


class DeferredMetrics:
    """Reads the metrics of an update after the next was dispatched, logs them, and stops or skips at non-finite ones.

    Args:
        name: of the stage.
        history: updated with every update.
        checkpoints: named in the message of an error.
    """

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        log: Callable[[str], None],
        progress: Progress,
        writer: MetricWriter,
        history: StageStats,
        checkpoints: Checkpoints,
    ):
        self._experiment, self._name, self._log = experiment, name, log
        self._progress, self._writer = progress, writer
        self._history, self._checkpoints = history, checkpoints
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of update `step`, and logs those of the one before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Reads and logs the metrics that were added last.

        Raises:
            NonFiniteLoss: the loss or its gradient is not finite, and such updates are not, or no longer, skipped.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {key: float(value) for key, value in metrics.items()}
        if not values.pop("finite"):
            self._not_finite(step, values["loss"])
            return
        history, config = self._history, self._experiment.stages[self._name]
        history.last_loss = values["loss"]
        if history.first_loss is None:
            history.first_loss = values["loss"]
        values["learning_rate"] = learning_rate_at(config.optimizer, config.steps, step - 1)
        self._progress.update(step, values)
        if step % self._experiment.log_every == 0 or step in (1, config.steps):
            self._writer.write_scalars(step, values)

    def _not_finite(self, step: int, loss: float) -> None:
        experiment = self._experiment
        problem = f"{self._name}: loss {loss} or its gradient is not finite at update {step}"
        if experiment.on_nonfinite == "stop":
            last_good = self._last_good()
            raise NonFiniteLoss(
                f"{problem}; {last_good}. Continue here without such updates (--config.on_nonfinite=skip), "
                f"or start in another --workdir with a lower config.stages.{base(self._name)}.optimizer.learning_rate"
            )
        self._history.skipped += 1
        if self._history.skipped > experiment.max_skipped:
            raise NonFiniteLoss(
                f"{problem}, after {experiment.max_skipped} that were skipped (config.max_skipped); {self._last_good()}"
            )
        self._log(f"{problem}; skipped ({self._history.skipped} of at most {experiment.max_skipped})")

    def _last_good(self) -> str:
        # One may still be on its way to the disk.
        self._checkpoints.wait()
        latest = self._checkpoints.latest()
        if latest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self._checkpoints.directory / str(latest)}"

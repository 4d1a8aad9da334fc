"""Running the tiny experiment as a whole, with or without an evaluation, stopped where a test wants it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.config.phases import ORDER
from mperceiver_jax.convert.importer import pretrained_directory
from mperceiver_jax.distributed.runtime import Preemption
from mperceiver_jax.training import cost_estimate, run
from mperceiver_jax.training.metric_log import read_metrics


def leave_out_all_but(*names: str) -> dict[str, int]:
    """The fields that leave out all other stages."""
    return {f"stages.{name}.steps": 0 for name in ORDER if name not in names}


class StopsAt(Preemption):
    """As if a signal came before the update of this number, counted from 0 over the run."""

    def __init__(self, call: int):
        super().__init__()
        self._remaining = call

    def requested(self) -> bool:
        self._noticed = self._noticed or self._remaining == 0
        self._remaining -= 1
        return super().requested()


class Scores:
    """An evaluator that computes nothing."""

    def __init__(self, scores=(1.0,)):
        self.scores, self.calls, self.params = list(scores), [], {}

    def __call__(self, stage: str, params: Mapping, step: int) -> dict[str, float]:
        return self.evaluate(stage, params, step)["scalars"]

    def evaluate(self, stage: str, params: Mapping, final=False) -> dict:
        self.params = {path: np.asarray(value) for path, value in params.items()}
        self.calls.append((stage, final))
        score = self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]
        return {"scalars": {"score": score, "psnr": score}}


def train(experiment, workdir, evaluator=None, stop_at=None, extend=False):
    """Runs an experiment without an estimate of its cost.

    Args:
        evaluator: an evaluator, or a class of them; by default one that computes nothing.
        stop_at: see `StopsAt`.
        extend: see `run_experiment`.
    """
    evaluator = evaluator or Scores()
    make_evaluator = evaluator if isinstance(evaluator, type) else lambda *_: evaluator
    with pytest.MonkeyPatch.context() as patch:
        # Counting operations takes longer than doing them here; `finished` has the plan.
        patch.setattr(cost_estimate, "plan_stage", lambda e, m, name: cost_estimate.StagePlan(name, "", 0, 0, 0, 0.0))
        if stop_at is not None:
            patch.setattr(run, "Preemption", lambda: StopsAt(stop_at))
        return run.run_experiment(experiment, workdir, make_evaluator, pretrained_directory, extend)


def logged_metrics(workdir: Path) -> list[tuple]:
    """Everything that was measured at every update, exactly."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [tuple((k, v) for k, v in sorted(row.items()) if k != "time") for row in rows]


def checkpointed_values(workdir: Path, name: str, entry: str = "trainable") -> dict[str, np.ndarray]:
    with Checkpoints(initial_params.checkpoint_folder(workdir, name), read_only=True) as checkpoints:
        return checkpoints.restore_params_only(checkpoints.latest(), entry)


def arrays_equal(left: Mapping, right: Mapping) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)

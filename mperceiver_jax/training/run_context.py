"""The objects that the stages of one run share, and the interfaces of their evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.distributed.runtime import Preemption
from mperceiver_jax.distributed.sharding import ParameterLayout
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.random_streams import Streams

Results = dict[str, Any]
"""Of an evaluation, for the report: at least `scalars`, {name: number}."""


class Evaluator(Protocol):
    """Measures what a stage has learned (`evaluate.heldout.HeldoutEvaluator`)."""

    def __call__(self, stage: str, params: Params, step: int) -> Mapping[str, float]:
        """Scalars within a stage. `score`, if present, decides which checkpoint is best.

        Raises:
            Preempted: the run was asked to stop during the evaluation.
        """

    def evaluate(self, stage: str, params: Params, final: bool = False) -> Results:
        """Everything for the report, after a stage (`final`) or within one. Raises as the call."""


class HeldoutTools(Protocol):
    """The tools of an evaluator for `Stage.evaluate`: held-out examples, and measures of results on them."""

    def examples(self, clean: bool = False) -> Sequence[Mapping[str, Any]]:
        """The held-out examples of all tasks; with `clean` only as many as one task has, for their `gt`."""

    def compiled(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, ...)` as a compiled function of (parameters, ...), compiled once for each name."""

    def run(self, stage: str, compute: Callable[..., Any], params: Params, examples: Sequence[Any]) -> list[Any]:
        """`compute(parameters, batch, key)` over examples in batches; one pytree of numpy arrays per example."""

    def reconstructions(self, stage: str, images: Sequence[np.ndarray], final: bool) -> float:
        """The mean PSNR in dB of reconstructions of the clean examples; `final` also writes them side by side."""

    def restorations(self, stage: str, outputs: Sequence[tuple[np.ndarray, np.ndarray | None]], final: bool) -> Results:
        """PSNR, SSIM and confusion of (restored image, logits or None) of all examples; `final` writes images."""

    def classifications(self, logits: Sequence[np.ndarray]) -> Results:
        """Accuracy and confusion of the logits of all examples."""

    def last_parameters(self, stage: str, averages: Params) -> Params | None:
        """The last parameters of a finished stage in place of its averages; None where it keeps no average."""


@dataclass(frozen=True)
class RunContext:
    """The objects that the stages of one run share.

    Attributes:
        layout: how parameters are laid out on the mesh.
        model: built abstractly.
        evaluator: called within a stage where the configuration asks for it, and after each.
        log: prints a line, in process 0 only.
    """

    experiment: Experiment
    workdir: Path
    layout: ParameterLayout
    model: RestorationModel
    evaluator: Evaluator
    log: Callable[[str], None]
    preemption: Preemption

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.layout.mesh

    @property
    def streams(self) -> Streams:
        """The random streams of the run."""
        return Streams(self.experiment.seed)

    def place(self, path: str, value: np.ndarray) -> jax.Array:
        """A parameter on the mesh, in the dtype that frozen parameters are stored in."""
        return self.layout.place(path, value, jnp.dtype(self.experiment.compute_dtype))

"""A training step of the dual branch: everything it does, its parts, and its UNet compared with PyTorch's.

The step is the one that training runs: frozen towers, both branches, the UNet, gradients of what is
trained, and AdamW. Weights and images are random.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from benchmarks import report, unet
from benchmarks.flop import flop
from benchmarks.subject import Subject, part_flop, random_batch, random_values
from benchmarks.timing import PEAK, Candidate, matrix_product, measure, program_memory
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.optim.optimizer import OptimizerConfig, make_optimizer
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step

EXAMPLES = """\
  python -m benchmarks.train_step
  python -m benchmarks.train_step --variant=sd21 --batch=16 --dtype=bfloat16 --output=train_step.json
  python -m benchmarks.train_step --variant=sd21 --batch=32 --remat --no-torch
"""


def step_and_arguments(chosen: Subject, cached: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(the step, what it is called with: its state, frozen weights, a batch, a key)."""
    model = MPerceiver(chosen.model)
    stage = build_stage("dual_branch", cast(Any, chosen), model)
    values = random_values(model, chosen.dtype)
    trained = {path: value.astype(jnp.float32) for path, value in values.items() if stage.is_trained(path)}
    frozen = {path: value for path, value in values.items() if path not in trained}
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = initial_state(trained, optimizer, ema=False)
    arguments = (state, frozen, random_batch(chosen, cached), jax.random.key(0))
    return make_step(stage.loss, optimizer), arguments


def training_step(chosen: Subject, cached: bool) -> Candidate:
    """One update on a batch; its state goes from update to update, as in training."""
    step, (state, *others) = step_and_arguments(chosen, cached)
    work = flop(step, state, *others)
    program = jax.jit(step, donate_argnums=0).lower(state, *others).compile()
    current = [state]

    def update() -> Any:
        current[0], metrics = program(current[0], *others)
        return current[0].step, metrics

    return Candidate(update, work, chosen.batch, program_memory(program))


def benchmark(options: Any) -> tuple[Subject, dict[str, Any]]:
    chosen = report.subject_of(options, remat=options.remat)
    candidates = {PEAK: matrix_product(chosen.dtype)}
    candidates["training step"] = training_step(chosen, cached=False)
    candidates["training step, cached towers"] = training_step(chosen, cached=True)
    torch_candidates, notes = unet.candidates(chosen, torch_too=options.torch, compile_too=options.compile)
    results = measure(candidates | torch_candidates, repeats=options.repeats)
    per_image = part_flop(chosen.model, chosen.size)
    for name in ("training step", "training step, cached towers"):
        per_image[name] = candidates[name].flop / chosen.batch
    return chosen, {
        "remat": options.remat,
        "flop_per_image": per_image,
        "results": results,
        "ratios": unet.ratios(results),
        "notes": notes,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = report.parser("train_step", __doc__, EXAMPLES)
    unet.add_arguments(options)
    options.add_argument("--remat", action="store_true", help="recompute blocks in the backward pass: less memory")
    return report.run("train_step", benchmark, arguments, options)


if __name__ == "__main__":
    sys.exit(main())

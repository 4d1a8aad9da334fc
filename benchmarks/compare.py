"""One table of several systems: their size, arithmetic, speed and memory, and what they learn in an equal time.

Every system is a configuration. Its model restores random images as `restore` would (MPerceiver with its
sampler, decoder and refinement) and makes the updates that `main` would, MPerceiver those of its dual branch.
With --seconds each recipe, all its stages, is then trained for about that long from nothing, on the bundled
photographs or what --images names, with every number of updates scaled by one factor, and measured on held-out
images. Times are of one device; reading data, compiling and evaluating come on top of the training's.

With --torch a restorer by regression also runs in PyTorch, eager, with the same weights. The networks of the
releases are in no package: put the release on PYTHONPATH and name the class, or a function of your own that
returns the module. It is called with images (b, 3, h, w), and, where it takes the degradation as input, PIP with
weights (b, classes), MiOIR's prompted networks with the guide (b, 1 or 3, h, w), AM-PromptIR with a list of names
(variants `faithful`) or text embeddings (b, width). Both sides
receive the true degradation, and are trained by L1 and AdamW.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.budget import trained
from benchmarks.systems import System, load_experiment, main_stage, sized
from benchmarks.timing import measure
from data_pipelines.files import write_atomically
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.evaluate.report import table
from mperceiver_jax.training.deferred_metrics import NonFiniteLoss

DEFAULT = tuple(f"configs/{name}.py:small" for name in ("allinone", "promptir", "am_promptir", "pip", "mioir"))
EXAMPLES = """\
examples:
  all five recipes for any machine, two minutes of training each
    python -m benchmarks.compare --seconds=120
  networks of full size on an accelerator
    python -m benchmarks.compare configs/promptir.py:3task configs/pip.py:5task --size=128 --batch=8 --output=table.json
  PromptIR compared with its release, unpacked in PromptIR/; JAX leaves PyTorch its share of the GPU's memory
    PYTHONPATH=PromptIR XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.compare configs/promptir.py:3task \\
        --size=128 --torch='promptir.py:3task=net.model:PromptIR(decoder=True)'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.size, options.batch, options.repeats, options.per_task) < 1 or options.seconds < 0:
        parser.error("--size, --batch, --repeats and --per-task are at least 1, --seconds at least 0")
    try:
        if options.output is not None and not options.output.parent.is_dir():
            raise ValueError(f"--output: there is no folder {options.output.parent}")
        # Mistakes are reported before anything is measured.
        experiments = {_short(name): _experiment(name, options) for name in options.configs}
        origins = _origins(options.torch, list(experiments))
        rows = [compare(name, one, origins.get(name), options) for name, one in experiments.items()]
    except (ValueError, OSError, NonFiniteLoss) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(f"{options.size} px, batch {options.batch}, on {jax.devices()[0].device_kind}; medians of {options.repeats}")
    print(table(columns, [[_text(row.get(column)) for column in columns] for row in rows]))
    if options.output is not None:
        write_atomically(options.output, (json.dumps(rows, indent=2) + "\n").encode())
    return 0


def compare(name: str, experiment: Experiment, origin: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One row: what was measured of one system.

    Args:
        origin: of the PyTorch network to compare with (`torch_peer.Origin`), or None.

    Raises:
        ValueError: the system cannot be measured with these options.
        NonFiniteLoss: its training did not work out.
    """
    _say(f"{name}: compiling and timing")
    system = System(sized(experiment, options.size, options.batch))
    candidates = {
        "restoring": system.restoration(options.size, options.batch),
        "training": system.training_step(main_stage(experiment)),
    }
    found = measure(candidates, repeats=options.repeats, warm_up=1)
    pixels = options.batch * options.size**2
    row: dict[str, Any] = {
        "system": name,
        "parameters": sum(value.size for value in system.values.values()),
        "GFLOP per megapixel": candidates["restoring"].flop / pixels * 1e-3,
        "images/s": found["restoring"]["images_per_second"],
        "images/s, training": found["training"]["images_per_second"],
    }
    row |= {f"GiB, {way}": found[way]["program_bytes"] / 2**30 for way in candidates if "program_bytes" in found[way]}
    # Their buffers would be in the way of what follows.
    del system, candidates
    if origin is not None:
        from benchmarks.torch_peer import compare_with_torch

        _say(f"{name}: comparing with PyTorch")
        row |= compare_with_torch(origin, experiment, options.size, options.batch, options.repeats)
    if options.seconds:
        _say(f"{name}: measuring and training its stages")
        row |= trained(experiment, options.seconds)
    return row


def _origins(texts: Sequence[str], names: Sequence[str]) -> Mapping[str, Any]:
    """The PyTorch networks that were named, by system. torch is imported only if there are any."""
    if not texts:
        return {}
    if importlib.util.find_spec("torch") is None:
        raise ValueError("--torch: PyTorch is not installed (pip install 'mperceiver-jax[torch]')")
    from benchmarks.torch_peer import Origin

    found = {}
    for text in texts:
        name, _, network = text.partition("=")
        if _short(name) not in names:
            raise ValueError(f"--torch {text}: CONFIG=NETWORK with one of the systems compared: {', '.join(names)}")
        found[_short(name)] = Origin.parse(network)
    return found


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("configs", nargs="*", default=DEFAULT, metavar="FILE:VARIANT", help="default: the five :small")
    result.add_argument("--size", type=int, default=96, metavar="PIXELS", help="side (default: %(default)s)")
    result.add_argument("--batch", type=int, default=4, metavar="N", help="images at a time (default: %(default)s)")
    result.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds timed (default: %(default)s)")
    result.add_argument("--seconds", type=float, default=0, metavar="S", help="of training each; 0 trains none")
    result.add_argument("--per-task", type=int, default=16, metavar="N", help="held-out images of each task")
    result.add_argument("--images", default="", metavar="DIR", help="clean photographs to train on")
    result.add_argument("--heldout-images", default="", metavar="DIR", help="clean photographs to measure on")
    result.add_argument(
        "--torch",
        action="append",
        default=[],
        metavar="CONFIG=IMPORT.PATH:NAME[(OPTION=VALUE, ...)]",
        help="the PyTorch network to compare a system with; may be repeated",
    )
    result.add_argument("--output", type=Path, metavar="FILE.json", help="also write the rows there")
    return result


def _experiment(name: str, options: argparse.Namespace) -> Experiment:
    """A configuration, with the data and the evaluation that the options name."""
    experiment = load_experiment(name)
    if not experiment.from_scratch and options.seconds:
        raise ValueError(f"{name} starts from published weights: it is measured without --seconds only")
    experiment = replace(experiment, from_scratch=True)
    data = replace(experiment.data, images=options.images, heldout_images=options.heldout_images)
    return replace(experiment, data=data, evaluation=replace(experiment.evaluation, per_task=options.per_task))


def _short(name: str) -> str:
    return name.removeprefix("configs/")


def _say(text: str) -> None:
    print(f"compare: {text}", file=sys.stderr, flush=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "–")


if __name__ == "__main__":
    sys.exit(main())

"""write a trained model as released weights: a folder that restores without the run, with a model card

examples:
  what `make run` trained, in half precision
    python -m mperceiver_jax.convert release runs/small --output=released
  restore with it
    python -m mperceiver_jax.restore photo.jpg --checkpoint=released --output=restored
  a model card of your own, which says what was trained on what, and what it cannot do
    python -m mperceiver_jax.convert release DIR --output=released --card=CARD.md
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import numpy as np

from data_pipelines.files import atomic_outputs
from data_pipelines.messages import print_line
from mperceiver_jax.checkpoints.initial_params import TASK_MAPS, Which
from mperceiver_jax.checkpoints.released import CARD, WEIGHTS
from mperceiver_jax.checkpoints.run_params import RunParams, run_params
from mperceiver_jax.checkpoints.workdir import config_file
from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.convert.formats.safetensors_writer import rounded, write_streamed
from mperceiver_jax.models import parameters
from mperceiver_jax.progress import progress_bar

DTYPES = ("float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="workdir of a training run")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write; must not exist yet")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="of the parameters, rounded (default: %(default)s)"
    )
    parser.add_argument("--card", type=Path, metavar="FILE", help="the model card (default: one made from the run)")
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="TEXT",
        help="a sentence that is shown to whoever restores with the weights; may be repeated",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Which),
        help="the last parameters, or their moving averages (default: what restoring uses)",
    )
    parser.add_argument(
        "--pretrained", type=Path, metavar="PATH", help="the published weights that the training started from, if moved"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder; the exceptions are those of `run_params` and `release`."""
    card = None if arguments.card is None else arguments.card.read_text(encoding="utf-8")
    found = run_params(arguments.source, arguments.weights, arguments.pretrained)
    for origin in found.origins:
        print_line(f"  {origin}")
    release(found, arguments.output, arguments.dtype, card, arguments.note)
    for file in sorted(arguments.output.iterdir()):
        print_line(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")


def release(
    found: RunParams, output: Path, dtype: str = "float16", card: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Writes released weights: the three files of `checkpoints.released`, all or none.

    Args:
        card: the text of the model card; None makes one from the configuration.
        notes: sentences that are shown to whoever restores with the weights.

    Raises:
        FileExistsError: the folder exists.
        ValueError: values that the dtype cannot hold.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; move it away, or name another --output")
    values, kind = found.without_placeholders, np.dtype(jnp.dtype(dtype))
    shapes = {path: v.get_value().shape for path, v in parameters.declared(found.model).items() if path in values}
    fields = ("name", "step", "planned", "averaged")
    stages = [{name: getattr(stage, name) for name in fields} for stage in found.stages]
    with progress_bar("writing", len(shapes)) as bar, atomic_outputs(output) as (folder,):
        folder.mkdir()

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for path in shapes:
                bar.update(1)
                yield path, rounded(path, np.asarray(values[path], np.float32), kind)

        write_streamed(folder / WEIGHTS, {path: (kind, shape) for path, shape in shapes.items()}, tensors())
        (folder / "config.json").write_bytes(
            config_file(to_mapping(found.experiment), stages=stages, notes=list(notes))
        )
        if maps := getattr(getattr(found.experiment.model, "network", None), "task_maps", ""):
            shutil.copyfile(maps, folder / TASK_MAPS)
        (folder / CARD).write_text(card or _card(found, dtype), encoding="utf-8")


def _card(found: RunParams, dtype: str) -> str:
    """A model card with what the run itself knows."""
    count = sum(v.get_value().size for v in parameters.declared(found.model).values())
    lines = [
        "---", "library_name: mperceiver_jax", "pipeline_tag: image-to-image", "---", "",
        f"# {found.experiment.title}, variant {found.experiment.variant or 'unnamed'}", "",
        f"{count:,} parameters, {found.weight_kind}, stored in {dtype}.", "", "```",
        "python -m mperceiver_jax.restore photo.jpg --checkpoint=THIS_FOLDER --output=restored", "```", "",
        "## Training", "", *(f"- {origin}" for origin in found.origins),
        f"- seed {found.experiment.seed}; the complete configuration is in `config.json`", "",
    ]  # fmt: skip
    return "\n".join(lines)

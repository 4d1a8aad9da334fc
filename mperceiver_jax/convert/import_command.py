"""published weights, from files, directories or hub repositories, become one directory of pretrained weights

examples:
  Stable Diffusion 2.1 as diffusers has it, and OpenCLIP's ViT-H/14 for the image tower
    python -m mperceiver_jax.convert import sd21-base/ open_clip_model.safetensors --output=pretrained
  the same from the hub (OWNER/NAME is whichever copy of SD 2.1-base you use)
    python -m mperceiver_jax.convert import OWNER/NAME laion/CLIP-ViT-H-14-laion2B-s32B-b79K --output=pretrained
  a single original checkpoint; in half the space
    python -m mperceiver_jax.convert import v2-1_512-ema-pruned.ckpt open_clip_model.safetensors \\
        --output=pretrained --dtype=bfloat16
  a checkpoint of the authors' release, with its adapters
    python -m mperceiver_jax.convert import mperceiver.ckpt --output=pretrained

  PromptIR's release, or that of another restorer by regression; --output is then a run that restore, evaluate and
  export take as --checkpoint
    python -m mperceiver_jax.convert import promptir.ckpt --config=configs/promptir.py:3task --output=runs/promptir
  MiOIR's with explicit prompts: network, classifier, and the map of the tasks from the same release
    python -m mperceiver_jax.convert import net_g.pth classifier.pth --config=configs/mioir.py:srresnet-explicit \\
        --config.model.network.task_maps=type7.npy --output=runs/mioir

The kind of a file is detected from its keys: checkpoints of Stable Diffusion and of the MPerceiver release,
components of diffusers, CLIP of transformers and OpenCLIP; safetensors, sharded with an index, or pickled.
What several sources have is taken from the first. Every name, shape and value is checked before the directory
appears. Train with

    python -m mperceiver_jax.main --config=configs/allinone.py:sd21 --config.pretrained=pretrained

where --config.pretrained also takes the sources themselves, separated by commas: they are then converted on
first use and kept in $XDG_CACHE_HOME/mperceiver_jax/pretrained.
"""

import argparse
from pathlib import Path

import jax

from data_pipelines.messages import print_line
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.convert.importer import DTYPES, import_pretrained
from mperceiver_jax.convert.model_config import add_config_argument, model_of, regression_of
from mperceiver_jax.convert.restorer_checkpoints import import_regression


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a file, a directory, or a hub repository OWNER/NAME[@REVISION]"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the directory to write")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="stored",
        help="convert the values; stored keeps each tensor's own (default: %(default)s)",
    )
    parser.add_argument(
        "--key",
        default="",
        metavar="NAME",
        help="where the tensors are in pickled checkpoints that hold several sets of them, as in ema or state.model",
    )
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises FileNotFoundError, FileExistsError or ValueError; nothing is written then."""
    # Converting needs no accelerator, and must not take one that is in use.
    jax.config.update("jax_platforms", "cpu")
    experiment = regression_of(arguments.config, arguments.overrides)
    if experiment is not None:
        if arguments.dtype not in ("stored", "float32"):
            raise ValueError(f"--dtype={arguments.dtype}: the parameters of a run are float32")
        files = [Path(source) for source in arguments.sources]
        for note in import_regression(files, arguments.output, experiment, arguments.key):
            print_line(f"note: {note}")
        print_line(f"{arguments.output}: {experiment.title}; restore with --checkpoint={arguments.output}")
        return
    model = model_of(arguments.config, arguments.overrides)
    import_pretrained(arguments.sources, arguments.output, model, arguments.dtype, key=arguments.key)
    record = PretrainedDirectory(arguments.output).record
    for licence in sorted({licence for source in record["sources"] for licence in source["licence"]}):
        print_line(f"licence of the weights: {licence}")
    output, parameters = arguments.output, record["parameters"]
    print_line(f"{output}: {parameters:,} parameters; train with --config.pretrained={output}")

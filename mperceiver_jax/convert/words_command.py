"""the names of degradations, as a CLIP text tower embeds them, for AM-PromptIR

examples:
  OpenCLIP's ViT-H/14, whose embeddings have the 1024 numbers that configs/am_promptir.py expects
    python -m mperceiver_jax.convert words laion/CLIP-ViT-H-14-laion2B-s32B-b79K --output=words.npy
    python -m mperceiver_jax.main --config=configs/am_promptir.py:3task --config.model.words=words.npy
  another tower, from a file or a directory
    python -m mperceiver_jax.convert words open_clip_model.safetensors --output=words.npy

The source is a whole CLIP model of OpenCLIP or transformers, or a text model with projection (Stable Diffusion's has
none). The captions are written down as tokens, so that no tokenizer is needed. Towers with exact GELU are read;
OpenAI's own have another activation and are refused.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from data_pipelines.files import atomic_outputs
from data_pipelines.messages import print_line
from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.convert.detect import recognise
from mperceiver_jax.convert.formats.locate import WeightFile, weight_files
from mperceiver_jax.convert.formats.torch_files import open_tensors
from mperceiver_jax.convert.importer import converted
from mperceiver_jax.convert.keymaps.registry import LAYOUTS
from mperceiver_jax.convert.state_dicts import match
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, TextTower
from mperceiver_jax.models.restorers.am_promptir import AMPromptIRConfig
from mperceiver_jax.models.restorers.text_prompts import CAPTIONS, caption_vectors

TASKS = tuple(task.name for task in TASK_SETS["pip"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a file, a directory, or a hub repository OWNER/NAME[/FILE][@REVISION]"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.npy", help="the file to write")
    parser.add_argument(
        "--tasks",
        default=",".join(TASKS),
        metavar="A,B",
        help="the network's tasks, in the order of their labels (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises FileNotFoundError, FileExistsError or ValueError; nothing is written then."""
    # Converting needs no accelerator, and must not take one that is in use.
    jax.config.update("jax_platforms", "cpu")
    output: Path = arguments.output
    if output.exists():
        raise FileExistsError(f"{output} exists already; name another --output")
    if output.suffix != ".npy":
        raise ValueError(f"--output={output}: a .npy file is written")
    tasks = [name.strip() for name in arguments.tasks.split(",")]
    vectors = np.asarray(caption_vectors(read_text_tower(arguments.source), tasks), np.float32)
    with atomic_outputs(output) as (partial,):
        np.save(partial, vectors)
    width, captions = vectors.shape[1], ", ".join(CAPTIONS[task][0] for task in tasks)
    resized = f" --config.model.network.text_width={width}" if width != AMPromptIRConfig.full().text_width else ""
    print_line(f"{output}: {len(tasks)} embeddings of {width} numbers ({captions})")
    print_line(f"train with --config=configs/am_promptir.py:3task --config.model.words={output}{resized}")


def read_text_tower(source: str) -> TextTower:
    """The text tower of a published CLIP model, of any size, float32, all its blocks run.

    Args:
        source: see `weight_files`.

    Raises:
        FileNotFoundError, ValueError: there is none, without its projection, or of another kind than ours.
    """
    for file in weight_files(source):
        tensors = open_tensors(file.path)
        layout = next((how for part, _, how in recognise(tensors, file.name).modules if part == "text_encoder"), None)
        if layout is not None:
            return _tower(file, dict(tensors), layout)
    raise ValueError(f"{source}: no CLIP text tower there; a model of OpenCLIP or transformers has one")


def _tower(file: WeightFile, tensors: dict, layout: str) -> TextTower:
    names = LAYOUTS["TextTower", layout](None)
    shapes = {names.canonical(key): tensor.shape for key, tensor in tensors.items()}
    shape = lambda path: shapes.get(names.keys(path)[0])
    embedding, positions, projection = map(shape, ("token_embedding.weight", "positional_embedding", "text_projection"))
    if embedding is None or positions is None or projection is None:
        raise ValueError(
            f"{file.name}: a text tower without its embeddings or its projection; take a whole CLIP model, or a text "
            "model with projection"
        )
    layers = 0
    while shape(f"transformer.resblocks.{layers}.ln_1.weight"):
        layers += 1
    config_file = file.path.parent / "config.json"
    configured = layout == "transformers" and config_file.is_file()
    settings = json.loads(config_file.read_text()) if configured else {}
    settings = settings.get("text_config", settings)
    # What transformers leaves out is its default. Of published towers with more than 12 blocks none is OpenAI's.
    usual = "quick_gelu" if configured else "gelu" if layers > 12 else "an activation that only a config.json names"
    if (activation := settings.get("hidden_act", usual)) != "gelu":
        raise ValueError(f"{file.name}: the text tower has {activation}; only those with exact GELU can be read")
    width = embedding[1]
    config = TextConfig(
        width=width,
        layers=layers,
        layers_run=layers,
        heads=settings.get("num_attention_heads", width // 64),
        vocabulary=embedding[0],
        context_length=positions[0],
        projection_width=projection[0 if layout == "transformers" else 1],
    )
    tower = TextTower(config)
    try:
        found = match(tower, tensors, layout, optional=("logit_scale$",))
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    values = {path: converted(tensor, np.dtype(np.float32)) for path, tensor in found.items()}
    # The temperature, which a text model alone has not, is not used.
    parameters.assign(tower, {"logit_scale": np.zeros((), np.float32)} | values)
    return tower

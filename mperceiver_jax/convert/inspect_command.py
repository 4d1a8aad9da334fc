"""say what a file or directory of weights is, which parts it holds, and what a full model still needs

examples:
  a file of unknown origin
    python -m mperceiver_jax.convert inspect weights.ckpt
  what an import of both together would find
    python -m mperceiver_jax.convert inspect sd21-base/ open_clip_model.safetensors
  a directory that import wrote
    python -m mperceiver_jax.convert inspect pretrained
  a restorer by regression: whether it is the one of that configuration
    python -m mperceiver_jax.convert inspect promptir.ckpt --config=configs/promptir.py:3task

Nothing is converted; only names, shapes and types are read. Hub repositories are downloaded.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipelines.messages import print_line, shorten_list
from mperceiver_jax.checkpoints.model_parts import PARTS, missing_parts, part_of
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory, is_pretrained_directory
from mperceiver_jax.command_line import one_line
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.convert.detect import find_parts, left_over, named_parts, recognise
from mperceiver_jax.convert.formats.locate import WeightFile, weight_files
from mperceiver_jax.convert.formats.torch_files import open_tensors
from mperceiver_jax.convert.keymaps import promptir
from mperceiver_jax.convert.model_config import add_config_argument, model_of, regression_of
from mperceiver_jax.convert.open_weights import of_pretrained
from mperceiver_jax.convert.restorer_checkpoints import CLASSIFIER, NETWORK, regression_modules
from mperceiver_jax.convert.state_dicts import match
from mperceiver_jax.models.mperceiver.model import MPerceiver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="+", metavar="FILE_OR_DIR", help="a file, a directory, or a hub repository OWNER/NAME"
    )
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises FileNotFoundError or ValueError where a source cannot be used, after all were described."""
    if (experiment := regression_of(arguments.config, arguments.overrides)) is not None:
        _inspect_regression(arguments.sources, experiment)
        return
    model = model_of(arguments.config, arguments.overrides)
    held: set[str] = set()
    unusable = []
    for source in arguments.sources:
        try:
            if is_pretrained_directory(source):
                held |= _describe_pretrained(model, Path(source))
                continue
            files = weight_files(source)
        except (OSError, ValueError) as error:
            unusable.append(one_line(error))
            continue
        for file in files:
            try:
                held |= _describe(model, file)
            except (OSError, ValueError) as error:
                print_line("  not usable, as said below")
                unusable.append(_reason(file.name, error))
    print()
    if not held and not unusable:  # Restorers by regression, which are whole.
        return
    if problems := missing_parts(model, held):
        print_line("For a full model:")
        print_line("\n".join(f"  {problem}" for problem in problems))
    else:
        print_line("All that training needs is there.")
    for part in PARTS:
        if not part.needed and not any(part_of(path) is part for path in held):
            print_line(f"  not there, and not needed to begin: {part.title}")
    if unusable:
        raise ValueError(f"not usable: {'; '.join(unusable)}")


def _reason(name: str, error: Exception) -> str:
    message = one_line(error)
    return message if name in message else f"{name}: {message}"


def _describe(model: MPerceiver, file: WeightFile) -> set[str]:
    tensors = open_tensors(file.path)
    files = file.files
    size = sum(part.stat().st_size for part in files)
    print_line(f"{file.name}: {len(tensors):,} tensors in {len(files)} file(s), {size / 1e9:.2f} GB")
    print_line(f"  types: {_types((tensor.dtype, math.prod(tensor.shape)) for tensor in tensors.values())}")
    if (restorer := promptir.recognise(tensors)) is not None:
        module, layout = restorer
        print_line(f"  layout: {type(module).__name__}, a restorer by regression ({layout}); import it with --config")
        match(module, tensors, layout)
        return set()
    print_line(f"  layout: {recognise(tensors, file.name).title}")
    for part, stored in named_parts(model, tensors, file.name).items():
        numbers = ((tensor.dtype, math.prod(tensor.shape)) for tensor in stored)
        print_line(f"  {part.title}: {len(stored):,} tensors, {_types(numbers)}")
    found = find_parts(model, tensors, file.name)
    if unused := left_over(tensors, found):
        print_line(f"  left aside: {shorten_list(sorted(unused), 5)}")
    return set(found)


def _inspect_regression(sources: list[str], experiment: Experiment) -> None:
    """Says which part of the experiment's model every file is."""
    modules = regression_modules(experiment)
    unusable = []
    for source in sources:
        try:
            tensors = open_tensors(source)
            print_line(f"{source}: {len(tensors):,} tensors")
            print_line(f"  types: {_types((tensor.dtype, math.prod(tensor.shape)) for tensor in tensors.values())}")
            # A classifier's file has nothing of a network's; otherwise it is the network's, or should be.
            conditions = any(key.startswith("CondNet.") for key in tensors)
            part = CLASSIFIER if CLASSIFIER in modules and conditions else NETWORK
            match(modules[part], tensors)
            print_line(f"  layout: {experiment.title}, {part.removesuffix('.')}: complete")
        except (OSError, ValueError) as error:
            unusable.append(_reason(source, error))
    if unusable:
        raise ValueError(f"not usable: {'; '.join(unusable)}")


def _describe_pretrained(model: MPerceiver, path: Path) -> set[str]:
    directory = PretrainedDirectory(path)
    of_pretrained(path, model)
    values = directory.record["values"]
    print_line(f"{directory.path}: pretrained in our layout, {directory.record['parameters']:,} parameters")
    for part in PARTS:
        own = [(dtype, math.prod(shape)) for path, (_, dtype, shape) in values.items() if part_of(path) is part]
        if own:
            print_line(f"  {part.title}: {len(own):,} parameters' arrays, {_types(own)}")
    for source in directory.record["sources"]:
        hashes = ", ".join(f"{name} sha256 {value[:16]}..." for name, value in source["sha256"].items())
        print_line(f"  from {source['name']} ({source['layout']}; {hashes}); licence: {'; '.join(source['licence'])}")
    return set(values)


def _types(sizes: Iterable[tuple[np.dtype | str, int]]) -> str:
    """'865,910,724 float32, 77 int64'."""
    counts: Counter[str] = Counter()
    for dtype, size in sizes:
        counts[str(dtype)] += size
    return ", ".join(f"{size:,} {dtype}" for dtype, size in counts.most_common())

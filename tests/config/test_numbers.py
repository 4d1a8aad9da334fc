"""Every number of a configuration has a range, and the error of one outside names its whole path."""

import math
import re
import runpy
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest

from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.errors import ConfigError

VARIANTS = [
    ("allinone", "small"), ("allinone", "sd21"), ("promptir", "3task"), ("am_promptir", "3task"), ("pip", "5task"),
    ("pip", "nafnet"), ("mioir", "small"), ("fast", "1"),
]  # fmt: skip
# -1 means "what remains".
MESH = ("mesh.data", "mesh.fsdp", "mesh.model")


def numbers(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int | float]]:
    """(path, number) of everything below a configuration."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from numbers(item, (*path, key))
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            yield from numbers(item, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def changed(mapping: dict[str, Any], path: tuple[str | int, ...], number: Any) -> dict[str, Any]:
    mapping = deepcopy(mapping)
    inner: Any = mapping
    for key in path[:-1]:
        if isinstance(inner[key], tuple):
            inner[key] = list(inner[key])
        inner = inner[key]
    inner[path[-1]] = number
    return mapping


@pytest.mark.parametrize(("file", "variant"), VARIANTS)
def test_numbers_that_make_no_sense_are_refused_by_their_path(file, variant):
    mapping = runpy.run_path(f"configs/{file}.py")["get_config"](variant).to_dict()
    for path, number in numbers(mapping):
        dotted = ".".join(key for key in path if isinstance(key, str))
        wrong: list[Any] = [-1] if isinstance(number, int) else [-1.0, math.nan, math.inf]
        if dotted in MESH or dotted == "mesh.rules":
            continue
        for value in wrong:
            with pytest.raises(ConfigError) as caught:
                from_mapping(Experiment, changed(mapping, path, value))
            found = re.match(r"[\w.]+", str(caught.value))
            assert found and found[0] == f"config.{dotted}", f"{dotted} = {value}: {caught.value}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages.drm.optimizer.eps", 0.0),
        ("stages.drm.optimizer.betas", (0.9, 1.0)),
        ("stages.drm.optimizer.final_fraction", 2.0),
        ("sampler.eta", 1e308),
        ("model.predictor.vision.patch_size", 0),
        ("model.predictor.vision.heads", 0),
        ("model.predictor.vision.heads", 10**9),
        ("model.predictor.hidden", 0),
        ("model.cm.heads", 0),
        ("model.unet.groups", 0),
        ("model.drm.width", 0),
    ],
)
def test_zeros_and_sizes_that_do_not_fit_are_refused_by_their_path(path, value):
    mapping = runpy.run_path("configs/allinone.py")["get_config"]("small").to_dict()
    with pytest.raises(ConfigError, match=rf"^config\.{re.escape(path)}: "):
        from_mapping(Experiment, changed(mapping, tuple(path.split(".")), value))

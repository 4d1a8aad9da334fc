"""Which sizes of model a conversion expects."""

import argparse
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from mperceiver_jax.command_line import one_line
from mperceiver_jax.config import Experiment, from_mapping
from mperceiver_jax.models.mperceiver import MPerceiver, MPerceiverConfig


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="the experiment whose model is meant (default: the published sizes, as in configs/allinone.py:sd21)",
    )


def model_of(config: str | None) -> MPerceiver:
    """The abstract model of a config file; of the published sizes when None.

    Raises:
        FileNotFoundError, ValueError: the file cannot be used.
    """
    if config is None:
        return MPerceiver(MPerceiverConfig.sd21())
    return MPerceiver(from_mapping(MPerceiverConfig, _mapping(config).model.to_dict(), "config.model"))


def regression_of(config: str | None) -> Experiment | None:
    """The experiment of a config file whose model is a restorer by regression; None for MPerceiver's.

    Raises:
        FileNotFoundError, ValueError: the file cannot be used.
    """
    if config is None or "family" not in (mapping := _mapping(config)).get("model", {}):
        return None
    return from_mapping(Experiment, mapping.to_dict())


def _mapping(config: str) -> ConfigDict:
    file, _, variant = config.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"--config: {file}: no such file")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise ValueError(f"{file} has no get_config")
        mapping = get_config(variant) if variant else get_config()
    except Exception as error:  # The file is a program, and may fail in any way.
        kind = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
        raise ValueError(f"--config={config}: {one_line(error)}{kind}") from error
    if not isinstance(mapping, ConfigDict) or "model" not in mapping:
        raise ValueError(f"--config={config}: its get_config gives no ConfigDict with a model")
    return mapping

"""Which sizes of model a conversion expects."""

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mperceiver_jax.command_line import one_line
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="the experiment whose model is meant (default: the published sizes, as in configs/allinone.py:sd21); "
        "its fields can be set as in training: --config.X.Y=VALUE",
    )


def overrides_among(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(those of the form --config.X.Y=VALUE, the others) of the arguments that a parser did not know."""
    fields = tuple(one for one in arguments if one.startswith("--config.") and "=" in one)
    return fields, tuple(one for one in arguments if one not in fields)


def model_of(config: str | None, overrides: Sequence[str] = ()) -> MPerceiver:
    """The abstract model of a config file; of the published sizes when None.

    Args:
        overrides: changed fields of the file, each as --config.X.Y=VALUE.

    Raises:
        FileNotFoundError, ValueError: the file, or an override, cannot be used.
    """
    if config is None and not overrides:
        return MPerceiver(MPerceiverConfig.sd21())
    return MPerceiver(from_mapping(MPerceiverConfig, _mapping(config, overrides).model.to_dict(), "config.model"))


def regression_of(config: str | None, overrides: Sequence[str] = ()) -> Experiment | None:
    """The experiment of a config file whose model is a restorer by regression; None for MPerceiver's.

    Arguments and exceptions as of `model_of`.
    """
    if config is None or "family" not in (mapping := _mapping(config, overrides)).get("model", {}):
        return None
    return from_mapping(Experiment, mapping.to_dict())


def _mapping(config: str | None, overrides: Sequence[str]) -> ConfigDict:
    if config is None:
        raise ValueError(f"{overrides[0]}: a field of which experiment? Give --config=FILE[:VARIANT]")
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
    return _overridden(mapping, overrides)


def _overridden(mapping: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The same as the training command's flag makes of them, types included."""
    # A separate set of flags: those of the process belong to the calling command.
    values, given = flags.FlagValues(), ["convert", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", mapping, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=given
        )
        values(given)
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{' '.join(overrides)}: {one_line(error)}") from error
    return values.config

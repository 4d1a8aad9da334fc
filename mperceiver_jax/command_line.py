"""Errors of the training command as single lines: mistakes in flags, and failures."""

import logging as standard_logging
import re
import sys

from absl import flags, logging

from data_pipelines.messages import printable

DEFAULT_WEIGHTS = "base"
"""The weights in this package that commands take where no checkpoint is named."""
_NOT_LOADED = "Configuration is not available because of an earlier failure to load: "


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags for `absl.app.run(main, flags_parser=...)`; exits with 'error: ...' where they are wrong.

    ml_collections raises various exceptions for fields and config files that do not exist, some of them with a
    traceback in their message.
    """
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        kind = "no such field: " if isinstance(error, LookupError | AttributeError) else ""
        hint = "" if isinstance(error, OSError) else " (see --help and the config file)"
        sys.exit(printable(f"error: {kind}{one_line(error)}{hint}"))


def silence_library_logs() -> None:
    """Silences log output of libraries that duplicates raised errors.

    Orbax logs every file at the level INFO and every failure with several tracebacks (--verbosity=0 restores
    them); tensorstore and asyncio then report each write that was in progress.
    """
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)

    show = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; of a traceback only its last line, which is the message.

    Where ml_collections lists the places in which it looked for a config file, only that there is none.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if any(line.startswith("Traceback") for line in lines):
        _, colon, message = lines[-1].partition(": ")
        return message if colon else lines[-1]
    line = " ".join(lines).rstrip(".").removeprefix(_NOT_LOADED)
    tried = re.match(r"Failed loading config file \S+ Attempted \[.*?\]: (.+?) \[Errno \d+\]", line)
    return f"there is no config file {tried[1]}" if tried else line

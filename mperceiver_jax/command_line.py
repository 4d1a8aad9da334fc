"""Flags of the training command: absl's parsing, with every mistake told in one line."""

import sys

from absl import flags


def parse_flags(arguments: list[str]) -> list[str]:
    """For `absl.app.run(main, flags_parser=...)`; leaves the program with 'error: ...' where flags are wrong.

    ml_collections raises a number of exceptions for fields and config files that do not exist, some of
    them with a trace in their message.
    """
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        what = "no such field: " if isinstance(error, LookupError | AttributeError) else ""
        sys.exit(f"error: {what}{one_line(error)} (see --help and the config file)")


def one_line(error: BaseException) -> str:
    """The message without line breaks; of a trace only its last line, which is the message."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if any(line.startswith("Traceback") for line in lines):
        _, colon, message = lines[-1].partition(": ")
        return message if colon else lines[-1]
    return " ".join(lines).rstrip(".")

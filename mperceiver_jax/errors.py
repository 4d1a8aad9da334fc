"""Errors of configurations, and the context of a run added to errors of files and data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field."""


@contextmanager
def reraise(message: Callable[[Exception], str]) -> Iterator[None]:
    """Re-raises OSError and ValueError with another message; a ConfigError passes unchanged.

    Args:
        message: returns the new message for the error. It is called only when there is an error.

    Raises:
        OSError, ValueError: the new error, whose cause is the original one.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        # The base class: some derived classes take other arguments than a message.
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(message(error)) from error

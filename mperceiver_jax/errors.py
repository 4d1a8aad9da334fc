"""What went wrong with files or data, told with where the run stood."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mperceiver_jax.config.schema import ConfigError


@contextmanager
def reraise(tell: Callable[[Exception], str]) -> Iterator[None]:
    """Gives an OSError or ValueError from within another message; a ConfigError says it all already.

    Args:
        tell: the new message, asked for when there is such an error.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        # Not the very type: some of those below take other arguments than a message.
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(tell(error)) from error

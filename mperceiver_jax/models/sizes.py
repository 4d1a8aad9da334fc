"""Checks of the sizes of networks, where their configurations are made."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any


def require_positive(config: Any, zero: Collection[str] = ()) -> None:
    """Checks that every number of a dataclass, also within tuples, is finite and above zero.

    Args:
        zero: names of the fields that may also be zero.

    Raises:
        ValueError: a number that is not; the message starts with the name of its field.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number) or number < 0 or (number == 0 and field.name not in zero):
                least = "0 or more" if field.name in zero else "positive"
                raise ValueError(f"{field.name}: {least} and finite, not {value}")


def require_divisible(config: Any, size: str, parts: str) -> None:
    """Raises ValueError where the field `size` of a configuration is no multiple of the field `parts`."""
    if getattr(config, size) % getattr(config, parts):
        raise ValueError(f"{parts}: {getattr(config, size)} ({size}) is no multiple of {getattr(config, parts)}")

"""Frozen dataclasses from nested mappings and back, strictly: every error names the field by its dotted path."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from mperceiver_jax.errors import ConfigError

NEGATIVE = "negative"
"""Key of a field's metadata: its number may be negative, as in `field(default=-1, metadata={"negative": True})`."""


def to_mapping(value: Any) -> Any:
    """A dataclass as nested dicts of plain values, ready for `ml_collections.ConfigDict`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(to_mapping, value))
    return value


def from_mapping(cls: type, mapping: Mapping[str, Any], where: str = "config") -> Any:
    """Builds a (nested) dataclass, strictly.

    Raises:
        ConfigError: an unknown, missing, mistyped or unusable field, by its dotted path.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    if hasattr(cls, "field_types"):
        try:
            hints |= cls.field_types(mapping)
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from error
    unknown = sorted(set(mapping) - set(fields))
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]}: no such field; {where} has {', '.join(fields)}")
    values = {}
    for name, declared in fields.items():
        if name in mapping:
            values[name] = _value(hints[name], mapping[name], f"{where}.{name}")
            if not declared.metadata.get(NEGATIVE):
                _check_numbers(values[name], f"{where}.{name}")
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name}: missing")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(in_group(where, cls, error)) from error


def _check_numbers(value: Any, where: str) -> None:
    """Raises ConfigError for numbers that are negative or not finite; nested dataclasses have checked their own."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            _check_numbers(item, f"{where}[{i}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, f"{where}.{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: a finite number is expected, not {value}")
    elif isinstance(value, int | float) and value < 0:
        raise ConfigError(f"{where}: at least 0, not {value}")


def in_group(where: str, cls: type, error: Exception) -> str:
    """The error of a dataclass at the path `where`, from a message that starts with a field or concerns the whole."""
    named = re.match(r"\w+", str(error))
    is_field = named and named[0] in (f.name for f in dataclasses.fields(cls))
    return f"{where}{'.' if is_field else ': '}{error}"


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: one of {arguments}, not {value!r}")
    if origin in (typing.Union, types.UnionType):
        given = to_mapping(value)
        groups = [option for option in arguments if dataclasses.is_dataclass(option)]
        if groups and isinstance(given, Mapping):
            # The group that has most of these fields is meant, and its errors are of use.
            known = lambda option: len({f.name for f in dataclasses.fields(option)} & set(given))
            return _value(max(groups, key=known), given, where)
        problems = []
        for option in arguments:
            if option is type(None):
                if value is None:
                    return None
                continue
            try:
                return _value(option, value, where)
            except ConfigError as error:
                problems.append(error)
        raise problems[0]
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            value = to_mapping(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: a group of fields is expected, not {value!r}")
        return from_mapping(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{where}: a list is expected, not {value!r}")
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) != len(value):
            raise ConfigError(f"{where}: {len(each)} values are expected, not {len(value)}")
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(each, value, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: a group of fields is expected, not {value!r}")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type):
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return value
        raise ConfigError(f"{where}: {hint.__name__} is expected, not {value!r}")
    raise ConfigError(f"{where}: fields of type {hint} are not supported")

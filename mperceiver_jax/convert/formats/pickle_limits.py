"""Limits on pickles, checked by their operations before any object is built.

Python hashes the keys of a dictionary while it reads a pickle. The hash of a tuple is computed from those of its
elements and not stored: where each of 60 nested tuples holds the one below it twice, it takes 2**60 operations. Where
100,000 tuples are nested, the recursion overflows the stack of the process. Checkpoints contain neither.
"""

import pickletools
from collections.abc import Iterator
from typing import IO, NamedTuple

_DEEPEST = 100
_MOST_ELEMENTS = 1_000_000
_MARK = object()


class PickleLimitExceeded(ValueError):
    """A pickle whose tuples are nested deeper, or hold more, than those of any checkpoint."""


class _Tuple(NamedTuple):
    """Depth of a tuple's nesting, and its elements at all levels, repeated ones as often as they occur."""

    depth: int
    elements: int


def check_limits(file: IO[bytes]) -> None:
    """Reads one pickle from a file, to its end.

    Raises:
        PickleLimitExceeded: tuples nested deeper than 100 levels, or of more than a million elements at all levels.
        ValueError: bytes that are no pickle.
    """
    stack: list[object] = []
    memo: dict[object, object] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1] if stack else None
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument))
        elif name == "DUP":
            stack.append(stack[-1] if stack else None)
        else:
            taken = list(_taken(stack, operation))
            made: object = _tuple_of(taken) if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE") else None
            stack += [_MARK if name == "MARK" else made] * len(operation.stack_after)


def _taken(stack: list[object], operation: pickletools.OpcodeInfo) -> Iterator[object]:
    """Takes from the stack what an operation uses."""
    before = operation.stack_before
    if pickletools.markobject in before:
        while stack and (last := stack.pop()) is not _MARK:
            yield last
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        if stack:
            yield stack.pop()


def _tuple_of(items: list[object]) -> _Tuple:
    inner = [item for item in items if isinstance(item, _Tuple)]
    depth = 1 + max((item.depth for item in inner), default=0)
    elements = len(items) + sum(item.elements for item in inner)
    if depth > _DEEPEST or elements > _MOST_ELEMENTS:
        raise PickleLimitExceeded(f"tuples nested {depth} deep that hold {elements:,} elements; no checkpoint has such")
    return _Tuple(depth, elements)

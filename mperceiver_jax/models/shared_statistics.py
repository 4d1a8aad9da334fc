"""Statistics over the pixels of an image that its tiles share.

Group normalisation and the channel attention of NAFNet depend on means over all pixels. Taken from each tile, they make
neighbours differ in brightness. Therefore some squares of the image are restored first, as one batch over which all
statistics are taken (`recorded`), and then the tiles, each with those (`given`).

Both hold while a function is traced. Statistics are identified by the order of the calls of `share`, which must be the
same; loops have to be `scan` of this module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

Statistics = list[Any]
"""What every call of `share` computed, in order; of a loop the list of its calls, stacked over the iterations."""

_recorded: ContextVar[Statistics | None] = ContextVar("recorded", default=None)
_given: ContextVar[Iterator[Any] | None] = ContextVar("given", default=None)


@contextmanager
def recorded() -> Iterator[Statistics]:
    """Statistics are taken over the whole batch; the list that is returned has them afterwards."""
    found: Statistics = []
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


@contextmanager
def given(statistics: Statistics) -> Iterator[None]:
    """These statistics, which `recorded` returned, take the place of each input's own.

    Raises:
        ValueError: there are more of them than calls of `share`.
    """
    values = iter(statistics)
    token = _given.set(values)
    try:
        yield
        if next(values, None) is not None:
            raise ValueError("statistics of another network: there are more than it takes")
    finally:
        _given.reset(token)


def share(statistics: Callable[[int], Any]) -> Any:
    """Statistics of an input: those that are given, otherwise what is computed, which is recorded.

    Args:
        statistics: computes them over the axes from this one to the last but one: from 1 of every example, from 0 of
            the whole batch. With 0 its arrays have one example.

    Raises:
        ValueError: there are fewer given ones than calls.
    """
    if (values := _given.get()) is not None:
        try:
            return next(values)
        except StopIteration:
            raise ValueError("statistics of another network: there are fewer than it takes") from None
    found = _recorded.get()
    computed = statistics(1 if found is None else 0)
    if found is not None:
        found.append(computed)
    return computed


def is_active() -> bool:
    """Whether statistics are recorded or given; then no part may be traced apart, as `jax.checkpoint` does."""
    return _given.get() is not None or _recorded.get() is not None


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, whose iterations record and use statistics of their own."""
    if (values := _given.get()) is not None:

        def with_given(carry: Any, row: Any) -> tuple[Any, Any]:
            own, statistics = row
            with given(statistics):
                return step(carry, own)

        return jax.lax.scan(with_given, carry, (rows, next(values)))
    if (found := _recorded.get()) is None:
        return jax.lax.scan(step, carry, rows)

    def with_recorded(carry: Any, row: Any) -> tuple[Any, Any]:
        with recorded() as inner:
            carry, out = step(carry, row)
        return carry, (out, inner)

    carry, (out, stacked) = jax.lax.scan(with_recorded, carry, rows)
    found.append(stacked)
    return carry, out

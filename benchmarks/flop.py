"""Counts the arithmetic of a function from the shapes in its trace: nothing is compiled or allocated.

Counted are matrix products and convolutions, 2 FLOP for each multiplication and addition; what the devices do
besides (norms, activations, softmax) is below a per cent of it at full size. XLA's own counter would do
for one function, but counts the body of a loop once, and differs between devices.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from jax.extend import core

from mperceiver_jax.models import attention


def flop(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOP of `function(*arguments)`; the arguments may be abstract.

    Attention counts as its two products, whichever kernel this device would take.

    Raises:
        ValueError: a loop of unknown length that holds products.
    """
    with mock.patch.object(attention, "kernel_for", lambda *given: "xla"):
        # A fresh function: what was traced for this device before must not be found.
        return _count(jax.make_jaxpr(lambda *given: function(*given))(*arguments).jaxpr)


def per_example(function: Callable[[int], float]) -> tuple[float, float]:
    """(FLOP of one more example, FLOP that do not depend on their number) where function(batch) counts."""
    one, two = function(1), function(2)
    return two - one, 2 * one - two


def _count(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        _, features_in, *space = parameters["dimension_numbers"].rhs_spec
        products = kernel[features_in] * math.prod(kernel[axis] for axis in space)
        # Zeros between the pixels, as in the gradient of a strided convolution, are no work.
        return 2.0 * equation.outvars[0].aval.size * products / math.prod(parameters["lhs_dilation"])
    inside = [_count(jaxpr) for jaxpr in _inner(parameters)]
    if name == "cond":
        return max(inside)
    if name == "while" and any(inside):
        raise ValueError("flop: a loop whose length is not known before it runs")
    return sum(inside) * (parameters["length"] if name == "scan" else 1)


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item

"""Count the floating-point operations of a jaxpr's matrix products: scans multiplied out, one branch of a cond."""

import math

import jax
from jax.extend import core


def matmul_flops(function, *args) -> int:
    """Return two operations for every multiply-add of the matrix products of `function(*args)`."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    inner = [_count(jaxpr) for jaxpr in _jaxprs(equation)]
    return times * (max(inner, default=0) if equation.primitive.name == "cond" else sum(inner))


def _jaxprs(equation: core.JaxprEqn):
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield getattr(value, "jaxpr", value)


def _is_jaxpr(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)

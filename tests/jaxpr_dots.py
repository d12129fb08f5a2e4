"""List the matrix products of a traced program by the dtypes of their operands and result."""

import jax
from jax.extend import core


def dots(function, *args) -> list[tuple[tuple, jax.numpy.dtype]]:
    """Return ((dtype of either operand), dtype of the result) of every product in `function(*args)`, scans once."""
    return list(_dots(jax.make_jaxpr(function)(*args).jaxpr))


def _dots(jaxpr: core.Jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(v.aval.dtype for v in equation.invars), equation.outvars[0].aval.dtype
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _dots(getattr(value, "jaxpr", value))


def _is_jaxpr(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)

"""List what a traced program computes: matrix products by their dtypes, and the largest arrays."""

import jax
from jax.extend import core


def dots(function, *args) -> list[tuple[tuple, jax.numpy.dtype]]:
    """Return ((dtype of either operand), dtype of the result) of every product in `function(*args)`, scans once."""
    return list(_dots(jax.make_jaxpr(function)(*args).jaxpr))


def largest(function, *args) -> int:
    """Return the elements of the largest array that an equation of `function(*args)` makes, scans inside and out."""
    made = (v.aval for equation in equations(jax.make_jaxpr(function)(*args).jaxpr) for v in equation.outvars)
    return max(aval.size for aval in made if hasattr(aval, "size"))


def _dots(jaxpr: core.Jaxpr):
    for equation in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            yield tuple(v.aval.dtype for v in equation.invars), equation.outvars[0].aval.dtype


def equations(jaxpr: core.Jaxpr):
    """Yield the equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value))


def _is_jaxpr(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)

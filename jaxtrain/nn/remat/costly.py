"""Which results are worth a copy: those that are not elementwise in values that are saved anyway."""

import jax
from jax.extend.core import Primitive

# Everything else is saved, so an operation that is missing here is a copy more, and nothing worse. Comparisons are
# missing on purpose: a mask has one byte, the random numbers that it comes from have four.
AGAIN = frozenset({
    *("abs", "add", "add_any", "cos", "div", "erf", "exp", "exp2", "expm1", "integer_pow", "log", "log1p", "logistic"),
    *("max", "min", "mul", "neg", "pow", "rsqrt", "select_n", "sin", "sqrt", "square", "sub", "tanh"),
    *("convert_element_type", "copy", "name", "optimization_barrier", "reduce_precision", "sharding_constraint"),
    *("broadcast_in_dim", "concatenate", "expand_dims", "iota", "reshape", "slice", "split", "squeeze", "transpose"),
})  # fmt: skip
CALLS = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "jit": "jaxpr", "pjit": "jaxpr"}


def costly(primitive: Primitive, *_: jax.core.AbstractValue, **params) -> bool:
    """Return whether to save the results of an operation: a policy of jax.checkpoint.

    A call of a function, such as one with a custom derivative, is costly if something in it is.
    """
    if primitive.name in CALLS:
        return any(costly(equation.primitive, **equation.params) for equation in params[CALLS[primitive.name]].eqns)
    return primitive.name not in AGAIN

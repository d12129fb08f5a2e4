"""Regions (`shard_map`) inside a repeat, each written as two where its results are needed at different times.

To the executor a region is one equation, so it would run whole wherever one of its results is needed. Its body is cut
as a repeat is: in the backward, what leads to the input's gradient is B and the rest W; in the forward, residuals
that do not depend on the repeat's input, such as gathered weights, are computed again rather than kept.
"""

from collections.abc import Callable, Sequence

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.sharding import PartitionSpec as P

from jaxtrain.pipeline.cut import cut
from jaxtrain.pipeline.equations import bind, dependents, part, rewritten, run, variables


def divide_backward(backward: Jaxpr, *arguments) -> Jaxpr:
    """Return a backward with regions in two: results that the first output, dx, needs come from the first."""
    dx = backward.outvars[:1]
    needed = variables(dx).union(*(variables(e.invars) for e in part(backward, backward.invars, dx).eqns))
    return _divided(backward, lambda equation: [var in needed for var in equation.outvars], *arguments)


def divide_forward(forward: Jaxpr, *arguments) -> Jaxpr:
    """Return a forward with regions in two: results that do not depend on the last input, x, come from the first."""
    from_x = dependents(forward, forward.invars[-1:])

    def independent(equation: JaxprEqn) -> list[bool]:
        body = equation.params["jaxpr"]
        pairs = zip(body.invars, equation.invars, strict=True)
        inside = dependents(body, [own for own, var in pairs if variables([var]) & from_x])
        return [var not in inside for var in body.outvars]

    return _divided(forward, independent, *arguments)


def _divided(jaxpr: Jaxpr, first_of: Callable[[JaxprEqn], list[bool]], *arguments) -> Jaxpr:
    used = variables(jaxpr.outvars).union(*(variables(equation.invars) for equation in jaxpr.eqns))

    def rewrite(equation: JaxprEqn, inputs: list) -> list:
        if equation.primitive.name != "shard_map":
            return bind(equation, inputs)
        first = first_of(equation)
        kinds = {early for early, var in zip(first, equation.outvars, strict=True) if var in used}
        return _in_two(equation, first, inputs) if len(kinds) == 2 else bind(equation, inputs)

    return rewritten(jaxpr, rewrite, *arguments)


def _in_two(equation: JaxprEqn, first: list[bool], inputs: list) -> list:
    """Compute a region in two: its results marked `first`, then the others, with what the first part deferred."""
    body, specs_in, specs_out = (equation.params[name] for name in ("jaxpr", "in_specs", "out_specs"))
    early, late = (_where(body.outvars, first, side) for side in (True, False))
    now, then, deferred = cut(body, early, late, known=body.invars)
    between = [_split_over(var) for var in deferred]
    specs_first, specs_second = (_where(specs_out, first, side) for side in (True, False))

    def with_axis(results: list) -> list:
        return [*results[: len(early)], *(value[None] for value in results[len(early) :])]

    results = _on_devices(equation, now, specs_in, [*specs_first, *between], inputs, finish=with_axis)
    made = results[len(early) :]
    rest = _on_devices(equation, then, (*specs_in, *between), specs_second, [*inputs, *made], finish=list)
    ready, others = iter(results), iter(rest)
    return [next(ready if is_first else others) for is_first in first]


def _on_devices(
    equation: JaxprEqn, body: Jaxpr, specs_in: tuple, specs_out: list, inputs: list, *, finish: Callable[[list], list]
) -> list:
    """Compute a body in the region of an equation, from those of the inputs that it reads."""
    read = variables(body.outvars).union(*(variables(inner.invars) for inner in body.eqns))
    used = [var in read for var in body.invars]
    pruned = body.replace(invars=_where(body.invars, used, True))
    region = jax.shard_map(
        lambda *own: finish(run(pruned, *own)),
        in_specs=tuple(_where(specs_in, used, True)),
        out_specs=specs_out,
        axis_names=equation.params["newly_manual_axes"],
        check_vma=equation.params["check_vma"],
    )
    return region(*_where(inputs, used, True))


def _where(items: Sequence, marks: list[bool], side: bool) -> list:
    return [item for item, mark in zip(items, marks, strict=True) if mark == side]


def _split_over(var: Var) -> P:
    """Return the layout of a value of the body, with an axis before its own for the devices over which it varies."""
    varying = var.aval.manual_axis_type.varying
    return P(tuple(sorted(varying)) or None)

"""Split regions (`shard_map`) inside a repeat in two, where their results are needed at different times.

A region is one equation of a jaxpr, so all of it would run wherever one of its results is needed. Its body is therefore
cut like a repeat. In the backward, what leads to the input's gradient is B and the rest is W. In the forward, residuals
that do not depend on the repeat's input, such as gathered weights, are recomputed, not stored.
"""

from collections.abc import Callable, Sequence

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.sharding import PartitionSpec as P

from jaxtrain.pipeline.cut import cut
from jaxtrain.pipeline.equations import aval, bind, dependents, part, rewritten, run, variables


def divide_backward(backward: Jaxpr, *arguments) -> Jaxpr:
    """Return a backward with regions split: the first part has the results that dx, the first output, needs."""
    dx = backward.outvars[:1]
    needed = variables(dx).union(*(variables(e.invars) for e in part(backward, backward.invars, dx).eqns))
    return _with_split_regions(backward, lambda equation: [var in needed for var in equation.outvars], *arguments)


def divide_forward(forward: Jaxpr, *arguments) -> Jaxpr:
    """Return a forward with regions split: the first part has the results that do not depend on x, the last input."""
    from_x = dependents(forward, forward.invars[-1:])

    def independent(equation: JaxprEqn) -> list[bool]:
        body = equation.params["jaxpr"]
        pairs = zip(body.invars, equation.invars, strict=True)
        inside = dependents(body, [own for own, var in pairs if variables([var]) & from_x])
        return [var not in inside for var in body.outvars]

    return _with_split_regions(forward, independent, *arguments)


def _with_split_regions(jaxpr: Jaxpr, first_of: Callable[[JaxprEqn], list[bool]], *arguments) -> Jaxpr:
    used = variables(jaxpr.outvars).union(*(variables(equation.invars) for equation in jaxpr.eqns))

    def rewrite(equation: JaxprEqn, inputs: list) -> list:
        if equation.primitive.name != "shard_map":
            return bind(equation, inputs)
        first = first_of(equation)
        kinds = {early for early, var in zip(first, equation.outvars, strict=True) if var in used}
        return _split_region(equation, first, inputs) if len(kinds) == 2 else bind(equation, inputs)

    return rewritten(jaxpr, rewrite, *arguments)


def _split_region(equation: JaxprEqn, first: list[bool], inputs: list) -> list:
    """Compute a region in two parts: the results marked `first`, then the others, from what the first part deferred."""
    body, specs_in, specs_out = (equation.params[name] for name in ("jaxpr", "in_specs", "out_specs"))
    early, late = (_where(body.outvars, first, side) for side in (True, False))
    now, then, deferred = cut(body, early, late, known=body.invars)
    between = [_split_over(var) for var in deferred]
    specs_first, specs_second = (_where(specs_out, first, side) for side in (True, False))

    def with_axis(results: list) -> list:
        return [*results[: len(early)], *(value[None] for value in results[len(early) :])]

    results = _run_in_region(equation, now, specs_in, [*specs_first, *between], inputs, finish=with_axis)
    made = results[len(early) :]
    rest = _run_in_region(equation, then, (*specs_in, *between), specs_second, [*inputs, *made], finish=list)
    ready, others = iter(results), iter(rest)
    return [next(ready if is_first else others) for is_first in first]


def _run_in_region(
    equation: JaxprEqn, body: Jaxpr, specs_in: tuple, specs_out: list, inputs: list, *, finish: Callable[[list], list]
) -> list:
    """Compute a body in the region of an equation, with only the inputs that it reads."""
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
    """Return the spec of a deferred value: a leading axis, split over the mesh axes over which the value varies."""
    varying = aval(var).manual_axis_type.varying
    return P(tuple(sorted(varying)) or None)

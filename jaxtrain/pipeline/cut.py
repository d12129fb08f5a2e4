"""Cut a jaxpr in two: the equations that some outputs need, and what the other outputs need besides."""

from collections.abc import Iterable
from typing import NamedTuple

from jax.extend.core import Jaxpr, Literal, Var

from jaxtrain.pipeline.equations import part, variables

COMPUTED_ONCE = (  # matrix products, equations that may contain one, and collectives
    "dot_general",
    "conv_general_dilated",
    "scan",
    "while",
    "cond",
    "checkpoint",
    "remat2",
    "pallas_call",
    "shard_map",
    "psum",
    "psum_invariant",
    "all_gather",
    "all_gather_invariant",
    "reduce_scatter",
    "all_to_all",
    "ppermute",
)
FREE = ("reshape", "transpose", "squeeze", "expand_dims")  # the same values in another shape


class Cut(NamedTuple):
    """`first` returns its outputs and then the deferred values; `second` takes the known inputs and then those."""

    first: Jaxpr
    second: Jaxpr
    deferred: list[Var]


def cut(whole: Jaxpr, first: list[Var | Literal], second: list[Var | Literal], *, known: list[Var]) -> Cut:
    """Return a jaxpr of the `first` outputs, and a jaxpr of the `second` outputs that runs later.

    Values that the first one computes and the second one reads are deferred, so no costly equation runs twice. Two
    kinds of values are not stored but computed again by the second one: those that follow from the known inputs without
    a matrix product or a collective, and those that are a deferred value in another shape. Inputs that are not known
    are deferred, too.
    """
    in_first = {id(equation) for equation in part(whole, whole.invars, first).eqns}
    recomputable = _recomputable(whole, known)
    wanted, deferred = variables(second), []
    for equation in reversed(whole.eqns):
        used = wanted.intersection(equation.outvars)
        recomputed = recomputable.issuperset(used) or equation.primitive.name in FREE
        if id(equation) in in_first and not recomputed:
            deferred += [var for var in equation.outvars if var in used]
        elif used:
            wanted |= variables(equation.invars)
    deferred += [var for var in whole.invars if var in wanted and var not in known]
    return Cut(part(whole, whole.invars, [*first, *deferred]), part(whole, [*known, *deferred], second), deferred)


def _recomputable(jaxpr: Jaxpr, known: Iterable[Var]) -> set[Var]:
    """Return the values that follow from the known ones without a matrix product or a collective."""
    found = {*known, *jaxpr.constvars}
    for equation in jaxpr.eqns:
        if equation.primitive.name not in COMPUTED_ONCE and variables(equation.invars) <= found:
            found.update(equation.outvars)
    return found

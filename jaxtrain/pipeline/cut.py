"""A list of equations cut in two: what some results need, and what the others need besides."""

from collections.abc import Iterable
from typing import NamedTuple

from jax.extend.core import Jaxpr, Literal, Var

from jaxtrain.pipeline.equations import part, variables

COMPUTED_ONCE = (  # matrix products, what may hold some, and collectives
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
    """Return what computes the `first` outputs, and what then computes the `second` from the known inputs.

    Values that the first part computes and the second reads are deferred, so the second repeats nothing costly. What
    the second can have from the known inputs without a matrix product or a collective it computes again, so that it
    need not be stored. Inputs that are not known are deferred, too.
    """
    in_first = {id(equation) for equation in part(whole, whole.invars, first).eqns}
    at_hand = _at_hand(whole, known)
    wanted, deferred = variables(second), []
    for equation in reversed(whole.eqns):
        used = wanted.intersection(equation.outvars)
        redone = at_hand.issuperset(used) or equation.primitive.name in FREE
        if id(equation) in in_first and not redone:
            deferred += [var for var in equation.outvars if var in used]
        elif used:
            wanted |= variables(equation.invars)
    deferred += [var for var in whole.invars if var in wanted and var not in known]
    return Cut(part(whole, whole.invars, [*first, *deferred]), part(whole, [*known, *deferred], second), deferred)


def _at_hand(jaxpr: Jaxpr, known: Iterable[Var]) -> set[Var]:
    """Return what can be had from the known values without a matrix product or a collective."""
    found = {*known, *jaxpr.constvars}
    for equation in jaxpr.eqns:
        if equation.primitive.name not in COMPUTED_ONCE and variables(equation.invars) <= found:
            found.update(equation.outvars)
    return found

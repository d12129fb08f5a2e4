"""One repeat taken apart into F, B, W, and fused B and W, as plain functions of arrays.

A repeat is traced once. Its residuals are what automatic differentiation saves for the backward. Those that depend on
the repeat's input are stored. The others (weights laid out for use, masks, rotary angles, dropout noise) are recomputed
from the weights and the microbatch, so a slot never holds weights. A remat policy decides what a repeat saves; its
recomputation is part of B.

What a repeat adds to the loss itself (balance and z-losses) is a second result. Its cotangent is one in every B. The
sums come out of F alone, so recomputing a repeat counts nothing twice.

The backward is one list of equations. Those that the input's gradient needs are B; those that only the weights' need
are W (Qi et al., 2023, arXiv:2401.10241). Values that B computes and W reads are deferred, so W repeats no matrix
product of B. What W can compute from the residuals without a matrix product is recomputed, not stored.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var

from jaxtrain.pipeline.cut import FREE, cut
from jaxtrain.pipeline.equations import dependents, part, run, trace, variables
from jaxtrain.pipeline.regions import divide_backward, divide_forward
from jaxtrain.pipeline.slots import Arrays, Tree

# (weights, data of the microbatch, x) -> ((y, what it adds to the loss, or None), sums)
Apply = Callable[[Tree, Tree, jax.Array], tuple[tuple[jax.Array, jax.Array | None], Tree]]


class Repeat(NamedTuple):
    """The units of one repeat, as functions of its weights, the data of the microbatch and arrays.

    forward(weights, data, x) -> y, sums, residuals
    residuals(weights, data, x) -> residuals, by the equations of F that they need
    backward(weights, data, residuals, dy) -> dx, dweights
    input_gradient(weights, data, residuals, dy) -> dx, deferred
    weight_gradient(weights, data, residuals, deferred) -> dweights
    """

    forward: Callable[[Tree, Tree, jax.Array], tuple[jax.Array, Tree, Arrays]]
    residuals: Callable[[Tree, Tree, jax.Array], Arrays]
    backward: Callable[[Tree, Tree, Arrays, jax.Array], tuple[jax.Array, Tree]]
    input_gradient: Callable[[Tree, Tree, Arrays, jax.Array], tuple[jax.Array, Arrays]]
    weight_gradient: Callable[[Tree, Tree, Arrays, Arrays], Tree]


def take_apart(apply: Apply, weights: Tree, data: Tree, x: jax.Array) -> Repeat:
    """Return the units of a repeat for arguments like these.

    Of the arguments only the shapes matter, and in a region the mesh axes over which they vary. So call this in the
    region in which the units will run.
    """
    forward, residuals_alone, pull = _forward(apply, weights, data, x)

    def backward(weights, data, residuals, dy):
        dweights, dx = pull(weights, data, residuals, dy)
        return dx, dweights

    y, _, residuals = forward(weights, data, x)
    arguments = weights, data, residuals, y
    first, second = _split(divide_backward(trace(backward, *arguments), *arguments))
    structure = jax.tree.structure(weights)

    def input_gradient(weights, data, residuals, dy):
        dx, *deferred = run(first, weights, data, residuals, dy)
        return dx, _squeezed(deferred)

    def weight_gradient(weights, data, residuals, deferred):
        return structure.unflatten(run(second, weights, data, residuals, deferred))

    return Repeat(forward, residuals_alone, backward, input_gradient, weight_gradient)


def _forward(apply: Apply, weights: Tree, data: Tree, x: jax.Array) -> tuple[Callable, Callable, Callable]:
    """Return F, the part of F that computes the residuals, and the pullback of dy, which reads those residuals."""
    structures = []

    def with_residuals(weights, data, x):
        (y, loss), pull, sums = jax.vjp(lambda weights, x: apply(weights, data, x), weights, x, has_aux=True)
        residuals, structure = jax.tree.flatten(pull)
        structures.append((structure, jax.tree.structure(sums), loss is not None))
        return y, jax.tree.leaves(sums), residuals

    jaxpr = divide_forward(trace(with_residuals, weights, data, x), weights, data, x)
    (pulls, of_sums, adds_to_loss), (y, *rest) = structures[0], jaxpr.outvars
    sums, residuals = rest[: of_sums.num_leaves], rest[of_sums.num_leaves :]
    *others, source = jaxpr.invars
    stored = _origins(jaxpr, variables(residuals) & dependents(jaxpr, [source]))
    whole, for_stored = part(jaxpr, jaxpr.invars, [y, *sums, *stored]), part(jaxpr, jaxpr.invars, stored)
    recompute = part(jaxpr, [*others, *stored], residuals)

    def forward(weights, data, x):
        y, *values = run(whole, weights, data, x)
        return y, of_sums.unflatten(values[: len(sums)]), _squeezed(values[len(sums) :])

    def residuals_alone(weights, data, x):
        return _squeezed(run(for_stored, weights, data, x))

    def pull(weights, data, residuals, dy):
        return pulls.unflatten(run(recompute, weights, data, residuals))((dy, jnp.float32(1) if adds_to_loss else None))

    return forward, residuals_alone, pull


def _squeezed(values: Arrays) -> Arrays:
    """Return the values without axes of length one; `run` restores them.

    XLA may order such an axis differently in the layouts of a buffer's writer and of its reader. It then copies the
    whole buffer in every tick, although no byte moves.
    """
    return [jnp.squeeze(value) for value in values]


def _origins(jaxpr: Jaxpr, wanted: set[Var]) -> list[Var]:
    """Return the wanted values, each that is another value in another shape replaced by that one; in equation order."""
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name in FREE and equation.outvars[0] in wanted:
            wanted = wanted - {equation.outvars[0]} | variables(equation.invars)
    made = [*jaxpr.invars, *(var for equation in jaxpr.eqns for var in equation.outvars)]
    return [var for var in made if var in wanted]


def _split(backward: Jaxpr) -> tuple[Jaxpr, Jaxpr]:
    """Cut a backward into B, which returns dx and then the deferred values, and W, which reads them instead of dy."""
    *known, dy = backward.invars
    dx, *dweights = backward.outvars
    return cut(backward, [dx], dweights, known=known)[:2]

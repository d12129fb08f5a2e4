"""One layer taken apart into F, B, W, and B with W at once, as plain functions of arrays.

A layer is traced once. What automatic differentiation keeps for the backward is divided in two: what depends on the
layer's input is kept; the rest (weights laid out for use, masks, rotary angles, dropout noise) is computed again from
the weights and the microbatch, so that no weight ever lies in an activation buffer. With a remat policy the layer keeps
what the policy keeps, and the recomputation is part of B.

What a layer adds to the loss itself (balance and z-losses) is a second result, whose cotangent is one in every B. Its
sums come out of F alone, so that running a layer again counts nothing twice.

The backward is one list of equations. Those that the input's gradient needs are B; those that only the weights' need
are W (Qi et al., 2023, arXiv:2401.10241). Values that B computes and W reads are deferred, so W repeats no matrix
product of B. What W can have from the kept values without one, it computes again rather than have it stored.
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


class Layer(NamedTuple):
    """The units of a layer. Lists of arrays pass between them: `kept` from F to B and W, `deferred` from B to its W."""

    forward: Callable[[Tree, Tree, jax.Array], tuple[jax.Array, Tree, Arrays]]  # (weights, data, x) -> (y, sums, kept)
    keep: Callable[[Tree, Tree, jax.Array], Arrays]  # (weights, data, x) -> kept, what F does for B alone
    backward: Callable[[Tree, Tree, Arrays, jax.Array], tuple[jax.Array, Tree]]  # (.., kept, dy) -> (dx, dweights)
    input_gradient: Callable[[Tree, Tree, Arrays, jax.Array], tuple[jax.Array, Arrays]]  # -> (dx, deferred)
    weight_gradient: Callable[[Tree, Tree, Arrays, Arrays], Tree]  # (weights, data, kept, deferred) -> dweights


def take_apart(apply: Apply, weights: Tree, data: Tree, x: jax.Array) -> Layer:
    """Return the units of a layer for arguments like these.

    Only their shapes matter, and in a shard_map over which axes they vary, so this is called where the units will be.
    """
    forward, keep, pull = _forward(apply, weights, data, x)

    def backward(weights, data, kept, dy):
        dweights, dx = pull(weights, data, kept, dy)
        return dx, dweights

    y, _, kept = forward(weights, data, x)
    arguments = weights, data, kept, y
    first, second = _split(divide_backward(trace(backward, *arguments), *arguments))
    structure = jax.tree.structure(weights)

    def input_gradient(weights, data, kept, dy):
        dx, *deferred = run(first, weights, data, kept, dy)
        return dx, _slim(deferred)

    def weight_gradient(weights, data, kept, deferred):
        return structure.unflatten(run(second, weights, data, kept, deferred))

    return Layer(forward, keep, backward, input_gradient, weight_gradient)


def _forward(apply: Apply, weights: Tree, data: Tree, x: jax.Array) -> tuple[Callable, Callable, Callable]:
    """Return F, the part of it that leads to the values it keeps, and what pulls dy back with them."""
    structures = []

    def with_residuals(weights, data, x):
        (y, loss), pull, sums = jax.vjp(lambda weights, x: apply(weights, data, x), weights, x, has_aux=True)
        residuals, structure = jax.tree.flatten(pull)
        structures.append((structure, jax.tree.structure(sums), loss is not None))
        return y, jax.tree.leaves(sums), residuals

    jaxpr = divide_forward(trace(with_residuals, weights, data, x), weights, data, x)
    (pulls, of_sums, adds_to_loss), (y, *others) = structures[0], jaxpr.outvars
    sums, residuals = others[: of_sums.num_leaves], others[of_sums.num_leaves :]
    *others, source = jaxpr.invars
    kept = _origins(jaxpr, variables(residuals) & dependents(jaxpr, [source]))
    first, for_kept = part(jaxpr, jaxpr.invars, [y, *sums, *kept]), part(jaxpr, jaxpr.invars, kept)
    again = part(jaxpr, [*others, *kept], residuals)

    def forward(weights, data, x):
        y, *values = run(first, weights, data, x)
        return y, of_sums.unflatten(values[: len(sums)]), _slim(values[len(sums) :])

    def keep(weights, data, x):
        return _slim(run(for_kept, weights, data, x))

    def pull(weights, data, kept, dy):
        return pulls.unflatten(run(again, weights, data, kept))((dy, jnp.float32(1) if adds_to_loss else None))

    return forward, keep, pull


def _slim(values: Arrays) -> Arrays:
    """Drop axes of length one. Left in, a compiler may put them elsewhere for the writer of a buffer than for its
    reader, and then copies the whole buffer in every tick though not a byte changes place; `run` brings them back."""
    return [jnp.squeeze(value) for value in values]


def _origins(jaxpr: Jaxpr, wanted: set[Var]) -> list[Var]:
    """Return the values of which the wanted ones are copies in another shape, in the order of the equations."""
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name in FREE and equation.outvars[0] in wanted:
            wanted = wanted - {equation.outvars[0]} | variables(equation.invars)
    made = [*jaxpr.invars, *(var for equation in jaxpr.eqns for var in equation.outvars)]
    return [var for var in made if var in wanted]


def _split(backward: Jaxpr) -> tuple[Jaxpr, Jaxpr]:
    """Cut a backward in B, with the values it defers behind dx, and W, which reads them in place of dy."""
    *known, dy = backward.invars
    dx, *dweights = backward.outvars
    return cut(backward, [dx], dweights, known=known)[:2]

"""Rounds of an exchange beyond the first: a loop whose number of rounds depends on the loads, with its gradient."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtrain_kernels.varying import vary, varying
from jaxtyping import Array, Float, Int

from jaxtrain.shapes import ModelState


def further_rounds(
    one_round: Callable,
    room: int,
    start: int,
    rounds: Int[Array, ""],
    plans: Any,
    arrays: ModelState,
    x: Float[Array, "P T D"],
    weights: Float[Array, "P T K"],
) -> Float[Array, "P T D"]:
    """Return the sums of `one_round(arrays, x, weights, plan, first)` for each piece over some rounds.

    `first` is `room` times the number of a round, from `start` to below `rounds`. The loop saves nothing: the backward
    pass computes each round again. It has a derivative of its own, since JAX has none for a loop of unknown length.
    """

    def of_round(params, x, weights, plans, others, index, piece):
        x, weights, plan = jax.tree.map(lambda parts: parts[piece], (x, weights, plans))
        return one_round(others._replace(params=params), x, weights, plan, index * room)

    others = arrays._replace(params={})
    return _sum_of_rounds(of_round, start, arrays.params, x, weights, plans, others, rounds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_of_rounds(of_round: Callable, start: int, params, x, weights, plans, others, rounds):
    def add(y, index, piece):
        return y.at[piece].add(of_round(params, x, weights, plans, others, index, piece))

    return _loop(add, zeros(x), start, rounds, len(x))


def _forward(of_round, start, *arguments):
    return _sum_of_rounds(of_round, start, *arguments), arguments


def _backward(of_round, start, arguments, dy):
    *differentiated, plans, others, rounds = arguments

    def add(gradients, index, piece):
        def one(*parts):
            return of_round(*parts, plans, others, index, piece)

        return jax.tree.map(jnp.add, gradients, jax.vjp(one, *differentiated)[1](dy[piece]))

    gradients = _loop(add, jax.tree.map(zeros, tuple(differentiated)), start, rounds, len(dy))
    return *gradients, None, None, None


_sum_of_rounds.defvjp(_forward, _backward)


def _loop(add: Callable, sums: Any, start: int, rounds: Int[Array, ""], pieces: int) -> Any:
    """Return the sums after `add(sums, index, piece)` for each piece in each round."""

    def body(carry):
        step, sums = carry
        return step + 1, add(sums, step // pieces, step % pieces)

    return jax.lax.while_loop(lambda carry: carry[0] < rounds * pieces, body, (jnp.int32(start * pieces), sums))[1]


def zeros(like: Array) -> Array:
    """Return zeros that vary over the same axes of a mesh."""
    return vary(varying(like), jnp.zeros_like(like))[0]

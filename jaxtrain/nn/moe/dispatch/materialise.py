"""The experts in use brought to the tokens: sparse materialisation, Qing et al. (2025), arXiv:2502.02581.

Experts stay split as they are. In each layer and step every device gets copies of the experts that most tokens of its
group ask for, as many as there are slots; which ones is data, so nothing is compiled again. Their tokens stay where
they are, so that loads cannot make one device wait for another. Tokens of all other experts are sent.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.exchange import EXCHANGED, Exchange, of_device, size_of
from jaxtrain.nn.moe.dispatch.region import Split, in_region_of_tokens
from jaxtrain.nn.moe.dispatch.rows import computed
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.ranges import check_at_least_one
from jaxtrain.shapes import ModelState


@dataclass(frozen=True, kw_only=True, slots=True)
class Materialise(Dispatch):
    """Each device gets copies of the `slots` experts with the most tokens. Tokens are sent to the others alone.

    `rest` is how these are sent; nothing is where the slots hold all experts that tokens asked for.
    """

    slots: int
    rest: Exchange = Exchange()
    paper: ClassVar[str] = "arXiv:2502.02581"

    def __post_init__(self):
        check_at_least_one(self, "slots")

    def check_mesh(self, mesh: AbstractMesh) -> None:
        self.rest.check_mesh(mesh)

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        function = functools.partial(_of_device, self, experts, routing.top_k)
        return in_region_of_tokens(function, x, routing, experts)


def _of_device(
    way: Materialise,
    experts: Experts,
    top_k: int,
    arrays: ModelState,
    split: Split,
    x: Float[Array, "T D"],
    numbers: Int[Array, "T K"],
    weights: Float[Array, "T K"],
) -> Float[Array, "T D"]:
    """Return the sums of a device's tokens over all devices that have experts."""
    send = functools.partial(of_device, way.rest, experts, top_k, arrays, split)
    total = size_of(split.experts) * len(jax.tree.leaves(arrays)[0])
    slots = min(way.slots, total)
    if size_of(split.experts) == 1:
        return send(x, numbers, weights)
    hot_S = _most_asked(split, numbers, slots, total)
    slot_E = jnp.full(total + 1, slots).at[hot_S].set(jnp.arange(slots))  # `slots` for all others
    slot_TK = slot_E[numbers]
    # Of devices with the same tokens, each computes its share.
    alike = size_of(split.alike)
    own_T = jnp.arange(len(x)) % alike == (jax.lax.axis_index(split.alike) if alike > 1 else 0)
    group_N = jnp.where(own_T[:, None], slot_TK, slots).reshape(-1)
    y_ND = computed(experts, _copies(split, arrays, hot_S), x, group_N, slots)
    y_TD = jnp.einsum("TKD,TK->TD", y_ND.reshape(*weights.shape, -1), weights)
    y_TD = jax.lax.psum(y_TD, split.alike) if split.alike else y_TD
    return y_TD + send(x, jnp.where(slot_TK < slots, total, numbers), weights, always=False)


def _most_asked(split: Split, numbers: Int[Array, "T K"], slots: int, total: int) -> Int[Array, " S"]:
    """Return the experts that most tokens of the devices between which experts are split ask for."""
    asked_E = jnp.sum(numbers.reshape(-1)[:, None] == jnp.arange(total)[None], axis=0, dtype=jnp.int32)
    asked_E = jax.lax.psum(asked_E, split.apart) if split.apart else asked_E
    return checkpoint_name(jax.lax.top_k(asked_E, slots)[1], EXCHANGED)


def _copies(split: Split, arrays: ModelState, hot: Int[Array, " S"]) -> ModelState:
    """Return copies of the experts with these numbers, which each device has the same of.

    It is a sum over devices, to which one adds an expert and all others 0. The gradient of an expert is the sum of
    those of its copies.
    """
    count = len(jax.tree.leaves(arrays)[0])
    at_S = hot - jax.lax.axis_index(split.experts) * count
    here_S = (at_S >= 0) & (at_S < count)

    def copy(leaf):
        own = leaf.at[at_S].get(mode="clip")
        return jax.lax.psum(jnp.where(here_S.reshape(-1, *(1,) * (leaf.ndim - 1)), own, 0), split.experts)

    return jax.tree.map(copy, arrays)

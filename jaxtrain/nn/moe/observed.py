"""What is counted of a mixture's routing where it is asked for.

After Kang et al. (2025), arXiv:2505.20225: co-activation, which experts a token has together, and the entropy of the
router.
Routing in float32 is that of Fedus et al. (2021), arXiv:2101.03961, section 2.4: `moved` says what it is good for.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers import Router
from jaxtrain.nn.moe.routing import TINY, Routing, Scores

ROUTING = "routing"  # asks for it, among the names of `TokenContext.taps`
BFLOAT16 = {"exponent_bits": 8, "mantissa_bits": 7}


def observed(
    scores: Scores, routing: Routing, rounded: Routing, real: Float[Array, "B L"]
) -> dict[str, Float[Array, "..."]]:
    """Return sums over real tokens: their number, entropies in nats, pairs of experts, and tokens that move.

    `together` has in row e and column f the tokens of both experts, on its diagonal the load. A token moves if it has
    other experts where the router is `rounded`.
    """
    p_BLE = scores.probabilities
    entropy_BL = -jnp.sum(p_BLE * jnp.log(jnp.maximum(p_BLE, TINY)), axis=-1)
    return {
        "tokens": jnp.sum(real),
        "entropy": jnp.sum(entropy_BL * real),
        "together": jnp.einsum("BLE,BLF->EF", routing.chosen, routing.chosen),
        "moved": jnp.sum(jnp.any(routing.chosen != rounded.chosen, axis=-1).astype(jnp.float32)),
    }


def scores_in_bfloat16(
    router: Router, x: Float[Array, "B L D"], context: TokenContext, own: Mapping[str, Any]
) -> Scores:
    """Return what the router says where its input, its parameters and its scores are rounded to bfloat16.

    Products are summed in float32, as matrix units do.
    """
    scores = router(_rounded(x), context, {name: _rounded(variable[...]) for name, variable in own.items()})
    return scores._replace(weights=_rounded(scores.weights))


def _rounded(x: Array) -> Array:
    # Not by casts there and back, which XLA may leave out.
    return jax.lax.reduce_precision(x, **BFLOAT16) if jnp.issubdtype(x.dtype, jnp.floating) else x

"""Head matmul and softmax cross-entropy in one, over tiles of the vocabulary: the logits are never held.

Wijmans et al. (2025, Cut Your Losses), arXiv:2411.09009, whose dropping of tiny gradients is left out; the z-loss is
that of Chowdhery et al. (2022, PaLM), arXiv:2204.02311, section 5. There are no kernels yet: on every device XLA.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.choice import Implementation, choose
from jaxtrain_kernels.cross_entropy import reference, xla
from jaxtrain_kernels.cross_entropy.reference import LossSums

IMPLEMENTATIONS = (
    Implementation(name="xla", run=xla.cross_entropy),
    Implementation(name="reference", run=reference.cross_entropy),
)


def cross_entropy(
    x: Float[Array, "*tokens D"],
    head: Float[Array, "W D"],
    targets: Int[Array, "*tokens"],
    weights: Float[Array, "*tokens"],
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    tile: int = 2048,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> LossSums:
    """Return sum of weight * (-log softmax(z)[target] + z_loss * lse(z)^2), z = softcap * tanh(x head^T / softcap).

    Beside it the sum without the z-loss, which carries no gradient. Logits and sums are float32. Gradients flow to x,
    head and weights. A token with weight 0 does not count, and may have any target, such as -100; a target outside the
    vocabulary has logit 0. Inside a shard_map, `axis_name` says that `head` is this device's part of a vocabulary split
    evenly over that axis; targets stay indices into the whole, and every device has the same result.

        loss, nll = cross_entropy(x, head, targets, weights, z_loss=1e-4)

    Raises:
        ValueError: shapes do not fit, targets are no integers, or a number is out of its range.
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    if x.shape[:-1] != targets.shape or targets.shape != weights.shape or x.shape[-1:] != head.shape[1:]:
        raise ValueError(
            f"x {x.shape}, head {head.shape}, targets {targets.shape}, weights {weights.shape}: give x as [..., D], "
            f"head as [W, D], and a target and a weight a token"
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets of dtype {targets.dtype}: give integers")
    if tile < 1 or z_loss < 0 or (softcap is not None and softcap <= 0):
        raise ValueError(f"{tile=}, {z_loss=}, {softcap=}: tile is at least 1, z_loss not negative, softcap positive")
    arguments = (x.reshape(-1, x.shape[-1]), head, targets.reshape(-1), weights.reshape(-1).astype(jnp.float32))
    options = {"z_loss": z_loss, "softcap": softcap, "tile": tile, "axis_name": axis_name}
    return choose("cross_entropy", IMPLEMENTATIONS, implementation, *arguments, **options).run(*arguments, **options)

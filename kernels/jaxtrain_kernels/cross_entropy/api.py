"""Head matmul and softmax cross-entropy in one operation, over tiles of the vocabulary: all logits never exist at once.

Wijmans et al. (2025, Cut Your Losses), arXiv:2411.09009. Left out: their dropping of tiny gradients. The result is two
numbers a token, from which a caller computes its loss: token weights, and the z-loss of Chowdhery et al. (2022, PaLM),
arXiv:2204.02311, section 5, are arithmetic on them. There are no kernels yet: every device runs XLA.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxtrain_kernels.choice import Implementation, choose
from jaxtrain_kernels.cross_entropy import reference, xla
from jaxtrain_kernels.cross_entropy.logits import Project
from jaxtrain_kernels.cross_entropy.reference import CrossEntropy

IMPLEMENTATIONS = (
    Implementation(name="xla", run=xla.cross_entropy),
    Implementation(name="reference", run=reference.cross_entropy),
)


def cross_entropy(
    x: Float[Array, "*tokens D"],
    head: Shaped[Array, "W D"],
    targets: Int[Array, "*tokens"],
    *,
    bias: Float[Array, " W"] | None = None,
    softcap: float | None = None,
    words: int | None = None,
    tile: int = 2048,
    shards: int = 1,
    axis_name: str | None = None,
    project: Project | None = None,
    implementation: str | None = None,
) -> CrossEntropy:
    """Return nll = -log softmax(z)[target] and log_z = log sum exp z, z = softcap * tanh((x head^T + bias) / softcap).

    Logits exist for at most `tile` rows of the head at once. If the head has no more rows, they are kept for the
    backward. Results are float32. Gradients flow to x, head and bias. A target outside the vocabulary, such as -100,
    has logit 0: give its token no weight. With `words` the vocabulary is the first rows of the head, and the others,
    which pad it, have no part in anything.

        nll, log_z = cross_entropy(x, head, targets)
        loss = jnp.sum(weights * (nll + z_loss * log_z**2))

    The vocabulary may be split over devices in two ways. The compiler may split it into `shards` equal parts; a tile is
    then at most `tile` rows of each part. Or inside a shard_map `head` and `bias` are this device's part of a
    vocabulary that is split evenly over `axis_name`; targets stay indices into the whole, and every device has the same
    result. `project(x, rows)` replaces x rows^T for rows of the head that are stored in another form; its derivative
    is automatic.

    Raises:
        ValueError: shapes do not fit, targets are no integers, or a number is out of its range.
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    if x.shape[:-1] != targets.shape or x.shape[-1:] != head.shape[1:]:
        raise ValueError(
            f"x {x.shape}, head {head.shape}, targets {targets.shape}: give x as [..., D], head as [W, D], "
            f"and a target a token"
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets of dtype {targets.dtype}: give integers")
    if tile < 1 or (softcap is not None and softcap <= 0):
        raise ValueError(f"{tile=}, {softcap=}: tile is at least 1, softcap positive")
    if words is not None and (not 1 <= words <= head.shape[0] or axis_name is not None):
        raise ValueError(f"{words=}: from 1 to the {head.shape[0]} rows of the head, without axis_name")
    if shards < 1 or head.shape[0] % shards:
        raise ValueError(f"{shards=}: must divide the {head.shape[0]} rows of the head")
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"bias {bias.shape}, head {head.shape}: give bias as [W], a number for each row of head")
    options = {
        "bias": bias,
        "softcap": softcap,
        "words": words,
        "tile": tile,
        "shards": shards,
        "axis_name": axis_name,
        "project": project,
    }
    return choose("cross_entropy", IMPLEMENTATIONS, implementation, x, head, targets, **options).run(
        x, head, targets, **options
    )

"""Rotary embeddings, Su et al. (2021), arXiv:2104.09864, in the half-split layout of released weights.

Pair i of a head is (x[i], x[i + K/2]), rotated by position * theta^(-2i/K).
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary embeddings with a base `theta`, and the scaling of their frequencies."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None

    def __post_init__(self):
        check_positive(self, "theta")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Return the angle by which one position turns each pair, in radians, float32 [K/2]."""
        frequencies = self.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        return (self.scaling(frequencies) if self.scaling else frequencies).astype(np.float32)


def rotate(x: Float[Array, "B L H K"], positions: Int[Array, "B L"], config: RopeConfig) -> Float[Array, "B L H K"]:
    """Return each head rotated by the token's position. Angles, sines and the product are float32."""
    angle_BLK = positions[..., None].astype(jnp.float32) * config.frequencies(x.shape[-1])[None, None, :]
    cos, sin = jnp.cos(angle_BLK)[:, :, None, :], jnp.sin(angle_BLK)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)

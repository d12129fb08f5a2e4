"""Rotary embeddings, Su et al. (2021), arXiv:2104.09864.

Pair i of a head is rotated by position * theta^(-2i/K). It is (x[i], x[i + K/2]), the half-split layout of most
released weights, or with `interleaved` (x[2i], x[2i + 1]), as in the paper. With a `fraction` only the first elements
of a head are rotated, and K is their number (Black et al., 2022, arXiv:2204.06745).
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary embeddings with a base `theta`, and the scaling of their frequencies.

    `fraction` is the part of each head that is rotated. `interleaved` pairs neighbours in place of halves.
    """

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    fraction: float = 1.0
    interleaved: bool = False

    def __post_init__(self):
        check_positive(self, "theta")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: must be in (0, 1], the part of each head that is rotated")

    def rotated(self, head_dim: int) -> int:
        """Return the number of elements of a head that are rotated."""
        return int(head_dim * self.fraction)

    def frequencies(self, head_dim: int, length: int) -> np.ndarray:
        """Return the angle by which one position turns each pair in rows of `length` tokens, in radians, float32."""
        K = self.rotated(head_dim)
        frequencies = self.theta ** -(np.arange(0, K, 2, dtype=np.float64) / K)
        return (self.scaling(frequencies, length) if self.scaling else frequencies).astype(np.float32)


def rotate(
    x: Float[Array, "B L H K"], positions: Int[Array, "B L"], config: RopeConfig, *, length: int
) -> Float[Array, "B L H K"]:
    """Return each head rotated by the token's position. Angles, sines and the product are float32.

    `length` is that of the whole row, of which `positions` may be a part.
    """
    head_dim, rotated = x.shape[-1], config.rotated(x.shape[-1])
    angle_BLK = positions[..., None].astype(jnp.float32) * config.frequencies(head_dim, length)[None, None, :]
    cos, sin = jnp.cos(angle_BLK)[:, :, None, :], jnp.sin(angle_BLK)[:, :, None, :]
    if config.scaling and config.scaling.amplitude() != 1.0:
        cos, sin = cos * config.scaling.amplitude(), sin * config.scaling.amplitude()
    part = x if rotated == head_dim else x[..., :rotated]
    first, second = _pairs(part.astype(jnp.float32), config.interleaved)
    turned = (first * cos - second * sin, second * cos + first * sin)
    y = jnp.stack(turned, axis=-1).reshape(part.shape) if config.interleaved else jnp.concatenate(turned, axis=-1)
    y = y.astype(x.dtype)
    return y if rotated == head_dim else jnp.concatenate((y, x[..., rotated:]), axis=-1)


def _pairs(x: Float[Array, "B L H K"], interleaved: bool) -> list[Float[Array, "B L H half"]]:
    if interleaved:
        x = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        return [x[..., 0], x[..., 1]]
    return jnp.split(x, 2, axis=-1)

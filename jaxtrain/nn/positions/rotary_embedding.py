"""Rotary embeddings, Su et al. (2021), arXiv:2104.09864: what its variants share.

Pair i of the K elements that are rotated is turned by position * theta^(-2i/K). The variants say how many elements of
a head are rotated, and which are a pair.
"""

from abc import abstractmethod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain.nn.positions.base import Positions
from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.sharding import on_one_cpu


class RotaryEmbedding(Positions):
    """Rotary embeddings with a base `theta`, and the scaling of their frequencies."""

    __slots__ = ()
    theta: float
    scaling: RopeScaling | None

    @abstractmethod
    def rotated(self, head_dim: int) -> int:
        """Return the number of elements of a head that are rotated: the first ones."""

    @abstractmethod
    def turn(
        self, x: Float[Array, "B L H K"], cos: Float[Array, "B L 1 half"], sin: Float[Array, "B L 1 half"]
    ) -> Float[Array, "B L H K"]:
        """Return the elements with every pair turned by its angle."""

    def frequencies(self, head_dim: int, length: int) -> np.ndarray:
        """Return the angle by which one position turns each pair in rows of `length` tokens, in radians, float32."""
        K = self.rotated(head_dim)
        frequencies = self.theta ** -(np.arange(0, K, 2, dtype=np.float64) / K)
        return (self.scaling(frequencies, length) if self.scaling else frequencies).astype(np.float32)

    def rotate(
        self, x: Float[Array, "B L H K"], positions: Int[Array, "B L"], *, length: int
    ) -> Float[Array, "B L H K"]:
        """Return each head rotated by the token's position. Angles, sines and the product are float32."""
        head_dim, rotated = x.shape[-1], self.rotated(x.shape[-1])
        angle_BLK = positions[..., None].astype(jnp.float32) * self.frequencies(head_dim, length)[None, None, :]
        cos, sin = jnp.cos(angle_BLK)[:, :, None, :], jnp.sin(angle_BLK)[:, :, None, :]
        if on_one_cpu():  # where XLA would compute them again for every head, and in the backward pass
            cos, sin = jax.lax.optimization_barrier((cos, sin))
        if self.scaling and self.scaling.amplitude() != 1.0:
            cos, sin = cos * self.scaling.amplitude(), sin * self.scaling.amplitude()
        part = x if rotated == head_dim else x[..., :rotated]
        y = self.turn(part.astype(jnp.float32), cos, sin).astype(x.dtype)
        return y if rotated == head_dim else jnp.concatenate((y, x[..., rotated:]), axis=-1)

    def check(self, head_dim: int) -> None:
        rotated = self.rotated(head_dim)
        if rotated % 2 and rotated == head_dim:
            raise ValueError(f"head_dim={head_dim}: rotary positions need an even one")
        if rotated % 2 or not rotated:
            raise ValueError(
                f"positions={self!r}: of head_dim={head_dim} it rotates {rotated} elements; choose a fraction that "
                "rotates an even number, at least 2"
            )
        self.frequencies(head_dim, length=1)  # raises for a scaling that does not fit the head

    def check_decoding(self, head_dim: int, first: int, last: int) -> None:
        if (self.frequencies(head_dim, first) != self.frequencies(head_dim, last)).any():
            raise ValueError(
                f"positions.scaling={type(self.scaling).__name__}: rows of {first} and of {last} tokens have different "
                "frequencies, so keys in the cache would be out of date as the row grows; keep prompt and "
                "continuation on one side of original_length, or ask for fewer tokens"
            )


def turn_halves(
    x: Float[Array, "B L H K"], cos: Float[Array, "B L 1 half"], sin: Float[Array, "B L 1 half"]
) -> Float[Array, "B L H K"]:
    """Return pairs (x[i], x[i + K/2]) turned by their angles."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def turn_neighbours(
    x: Float[Array, "B L H K"], cos: Float[Array, "B L 1 half"], sin: Float[Array, "B L 1 half"]
) -> Float[Array, "B L H K"]:
    """Return pairs (x[2i], x[2i + 1]) turned by their angles."""
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    return jnp.stack((first * cos - second * sin, second * cos + first * sin), axis=-1).reshape(x.shape)
